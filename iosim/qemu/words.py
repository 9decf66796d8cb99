"""Shell text into commands of words, each word with the line it stands in.

Python's ``shlex`` gives neither line numbers nor the ends of commands, and both are needed here: every
error about a command line names its line, and a file may hold more than one command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from iosim.errors import IosimError

#: Characters that end a word outside quotes (POSIX shell, section 2.3, token recognition).
_BLANK = " \t"
_OPERATORS = ";&|()"
#: A redirection with its optional file descriptor, as in ``2>>log`` or ``2>&1``.
_REDIRECTION = re.compile(r"\d*(?:&>>?|[<>]&|>>|<<|>\||<>|[<>])")


@dataclass(frozen=True)
class Word:
    """One word of a command, unquoted, and the line (counted from 1) in which it begins."""

    text: str
    line: int
    #: A backslash stood before blanks at the end of the line: it was meant to continue it, and does not.
    broken_continuation: bool = False


def split_commands(text: str, source: str) -> list[list[Word]]:
    r"""Split shell text into its commands, and these into words.

    Quotes, backslashes, ``\`` at the end of a line, comments, ``;``, ``&``, ``|``, line ends and
    redirections mean what they mean to a POSIX shell. Nothing is expanded: ``$IMAGE`` stays as it is.

    Args:
        text: The text, of a shell script or of one command.
        source: The name of its file, for errors.

    Raises:
        IosimError: A quote or a ``$(`` that is not closed, or a here-document.
    """
    return _Splitter(text.replace("\r\n", "\n").removeprefix("\ufeff"), source).split()


class _Splitter:
    """The state of one pass over the text."""

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        self.source = source
        self.at = 0
        self.line = 1
        self.commands: list[list[Word]] = []
        self.words: list[Word] = []

    def split(self) -> list[list[Word]]:
        while self.at < len(self.text):
            self._step()
        self._end_command()
        return self.commands

    def _step(self) -> None:
        char = self.text[self.at]
        redirection = _REDIRECTION.match(self.text, self.at)
        if char == "\n" or (char in _OPERATORS and not redirection):
            self._end_command()
            self._advance()
        elif char in _BLANK:
            self.at += 1
        elif self.text.startswith("\\\n", self.at):
            self._advance(2)
        elif char == "#":
            end = self.text.find("\n", self.at)
            self.at = len(self.text) if end < 0 else end
        elif redirection:
            self._skip_redirection(redirection)
        else:
            self.words.append(self._word())

    def _advance(self, count: int = 1) -> str:
        taken = self.text[self.at : self.at + count]
        self.line += taken.count("\n")
        self.at += count
        return taken

    def _end_command(self) -> None:
        if self.words:
            self.commands.append(self.words)
            self.words = []

    def _skip_redirection(self, found: re.Match[str]) -> None:
        if found[0].endswith("<<"):
            raise self._error("iosim reads a command, not a here-document (<<)", self.line)
        self.at = found.end()
        while self.at < len(self.text) and self.text[self.at] in _BLANK:
            self.at += 1
        # The target belongs to the redirection; at the end of a line there is none, as in `2>`.
        if self.at < len(self.text) and self.text[self.at] not in "\n" + _OPERATORS + "<>":
            self._word()

    def _word(self) -> Word:
        line = self.line
        parts: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            if char in "\n<>" or char in _BLANK or char in _OPERATORS:
                break
            if char == "'":
                parts.append(self._single_quoted())
            elif char == '"':
                parts.append(self._double_quoted())
            elif char == "`" or self.text.startswith("$(", self.at):
                parts.append(self._substitution())
            elif char == "\\":
                if self._is_broken_continuation():
                    self.at += 1
                    return Word("".join(parts), line, broken_continuation=True)
                taken = self._advance(2)[1:]
                parts.append("" if taken == "\n" else taken)
            else:
                parts.append(self._advance())
        return Word("".join(parts), line)

    def _is_broken_continuation(self) -> bool:
        rest = self.at + 1
        while rest < len(self.text) and self.text[rest] in _BLANK:
            rest += 1
        return rest > self.at + 1 and (rest == len(self.text) or self.text[rest] == "\n")

    def _single_quoted(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise self._error("this quote (') is not closed", self.line)
        return self._advance(end + 1 - self.at)[1:-1]

    def _double_quoted(self) -> str:
        opened = self.line
        self._advance()
        parts: list[str] = []
        while self.at < len(self.text):
            char = self._advance()
            if char == '"':
                return "".join(parts)
            if char == "\\" and self.text[self.at : self.at + 1] in ('"', "\\", "$", "`", "\n"):
                char = self._advance().replace("\n", "")
            parts.append(char)
        raise self._error('this quote (") is not closed', opened)

    def _substitution(self) -> str:
        """Take ``$(...)`` or backquotes as they stand: what they would give is not known here."""
        opened = self.line
        start = self.at
        if self._advance() == "`":
            end = self.text.find("`", self.at)
            if end < 0:
                raise self._error("this quote (`) is not closed", opened)
            self._advance(end + 1 - self.at)
            return self.text[start : self.at]
        depth = 0
        while self.at < len(self.text):
            char = self._advance()
            depth += (char == "(") - (char == ")")
            if depth == 0:
                return self.text[start : self.at]
        raise self._error("this $( is not closed", opened)

    def _error(self, message: str, line: int) -> IosimError:
        return IosimError(message, f"{self.source}:{line}")
