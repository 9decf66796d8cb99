"""``python -m iosim`` is the command ``iosim``."""

from iosim.cli import main

if __name__ == "__main__":
    main()
