"""Every option of qemu-system-x86_64, and whether it takes an argument.

Source: ``qemu-options.hx`` of QEMU 2.5 to 10.1 (its ``HAS_ARG`` column), and what earlier versions had;
options that QEMU has since dropped stay here, for command lines outlive them.
"""

from __future__ import annotations

_WITH_ARGUMENT = """
    accel acpitable action add-fd append audio audiodev balloon bios blockdev boot bootp bt cdrom chardev
    chroot clock compat cpu D d debugcon device dfilter display drive dtb dump-vmstate echr fda fdb fsdev
    fw_cfg g gdb global hda hdachs hdb hdc hdd icount incoming initrd iscsi k kernel kvm-shadow-memory L
    loadvm M m machine mem-path mon monitor msg mtdblock name net netdev nic numa object option-rom
    overcommit parallel pcidevice pflash pidfile plugin prom-env qmp qmp-pretty qtest qtest-log readconfig
    realtime redir rotate rtc run-with runas sandbox sd seed semihosting-config serial set shim smb smbios
    smp soundhw spice startdate tb-size tdf tftp tpmdev trace usbdevice uuid vga virtfs virtioconsole vnc
    watchdog watchdog-action writeconfig xen-domid
"""
_WITHOUT_ARGUMENT = """
    alt-grab async-teardown audio-help ctrl-grab curses daemonize enable-fips enable-kvm
    enable-sync-profile full-screen h help jitdump localtime mem-prealloc no-acpi no-fd-bootchk no-frame
    no-hpet no-kvm no-kvm-irqchip no-kvm-pit no-kvm-pit-reinjection no-quit no-reboot no-shutdown
    no-user-config nodefaults nodefconfig nographic nouserconfig old-param one-insn-per-tb only-migratable
    perfmap portrait preconfig rtc-td-hack S s sdl semihosting show-cursor singlestep snapshot std-vga usb
    version virtfs_synth win2k-hack xen-attach xen-create xen-domid-restrict
"""

#: Name without dashes -> does it take an argument?
OPTIONS: dict[str, bool] = {
    **dict.fromkeys(_WITH_ARGUMENT.split(), True),
    **dict.fromkeys(_WITHOUT_ARGUMENT.split(), False),
}
