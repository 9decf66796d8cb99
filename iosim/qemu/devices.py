"""The device models that ``-device`` and ``-net nic,model=`` know, and the Linux drivers that serve them.

Source: ``qemu-system-x86_64 -device help`` of QEMU 5.0 to 9.2 for names and buses;
``hw/net/*.c`` and ``hw/pci/pci.c`` for the NIC models; the ``pci_device_id`` tables of Linux for the drivers.
"""

from __future__ import annotations

from dataclasses import dataclass

from iosim.qemu.name_list import name_list


@dataclass(frozen=True)
class DeviceModel:
    """A device model of QEMU's.

    Args:
        name: QEMU's name of it.
        kind: "nic", "disk", "controller" (of disks), "bridge" (has a PCI bus of its own), "vga" or "other".
        bus: "PCI", or the kind of bus it sits on instead ("IDE", "SCSI", "usb-bus", "ISA", ...).
        guest_driver: The Linux driver that serves it in the guest, or "".
        description: What ``lspci`` or a person would call it.
    """

    name: str
    kind: str
    bus: str
    guest_driver: str
    description: str

    @property
    def is_virtio(self) -> bool:
        """Whether the guest drives it through virtqueues."""
        return self.name.startswith(("virtio-", "vhost-"))


_I8255X = """
    i82550 i82551 i82557a i82557b i82557c i82558a i82558b i82559a i82559b i82559c i82559er i82562 i82801
"""
_NICS = {
    "e1000": ("e1000", "Intel 82540EM Gigabit Ethernet"),
    "e1000-82544gc": ("e1000", "Intel 82544GC Gigabit Ethernet"),
    "e1000-82545em": ("e1000", "Intel 82545EM Gigabit Ethernet"),
    "e1000e": ("e1000e", "Intel 82574L Gigabit Ethernet"),
    "igb": ("igb", "Intel 82576 Gigabit Ethernet"),
    "ne2k_pci": ("ne2k-pci", "Realtek RTL8029 (NE2000)"),
    "pcnet": ("pcnet32", "AMD Am79C970A PCnet"),
    "rtl8139": ("8139cp", "Realtek RTL8139"),
    "tulip": ("tulip", "DEC 21143 Tulip"),
    "virtio-net-pci": ("virtio_net", "virtio network device"),
    "vmxnet3": ("vmxnet3", "VMware vmxnet3"),
    "rocker": ("rocker", "Rocker switch"),
    **{name: ("e100", f"Intel {name} Ethernet") for name in _I8255X.split()},
}
_PCI_DISKS = {
    "virtio-blk-pci": ("virtio_blk", "virtio block device"),
    "vhost-user-blk-pci": ("virtio_blk", "virtio block device, vhost-user"),
    "nvme": ("nvme", "NVM Express controller"),
}
_DISKS = {
    "ide-hd": ("IDE", "ata_piix"),
    "ide-cd": ("IDE", "ata_piix"),
    "ide-drive": ("IDE", "ata_piix"),
    "scsi-hd": ("SCSI", "sd_mod"),
    "scsi-cd": ("SCSI", "sr_mod"),
    "scsi-disk": ("SCSI", "sd_mod"),
    "scsi-block": ("SCSI", "sd_mod"),
    "usb-storage": ("usb-bus", "usb-storage"),
    "usb-uas": ("usb-bus", "uas"),
}
_CONTROLLERS = {
    "virtio-scsi-pci": ("virtio_scsi", "virtio SCSI controller"),
    "vhost-scsi-pci": ("virtio_scsi", "virtio SCSI controller, vhost"),
    "vhost-user-scsi-pci": ("virtio_scsi", "virtio SCSI controller, vhost-user"),
    "lsi53c895a": ("sym53c8xx", "LSI 53C895A SCSI controller"),
    "lsi53c810": ("sym53c8xx", "LSI 53C810 SCSI controller"),
    "megasas": ("megaraid_sas", "LSI MegaRAID SAS 1078"),
    "megasas-gen2": ("megaraid_sas", "LSI MegaRAID SAS 2108"),
    "mptsas1068": ("mptsas", "LSI SAS 1068"),
    "pvscsi": ("vmw_pvscsi", "VMware PVSCSI controller"),
    "am53c974": ("am53c974", "AMD Am53c974 SCSI controller"),
    "dc390": ("am53c974", "Tekram DC-390 SCSI controller"),
    "ich9-ahci": ("ahci", "ICH9 AHCI controller"),
    "piix3-ide": ("ata_piix", "PIIX3 IDE controller"),
    "piix4-ide": ("ata_piix", "PIIX4 IDE controller"),
}
_BRIDGES = """
    i82801b11-bridge ioh3420 pci-bridge pci-bridge-seat pcie-pci-bridge pcie-root-port pxb pxb-pcie
    x3130-upstream xio3130-downstream
"""
_VGAS = {
    "VGA": ("bochs", "QEMU standard VGA"),
    "cirrus-vga": ("cirrus", "Cirrus CLGD 54xx VGA"),
    "qxl-vga": ("qxl", "Spice QXL VGA"),
    "vmware-svga": ("vmwgfx", "VMware SVGA"),
    "virtio-vga": ("virtio_gpu", "virtio VGA"),
    "virtio-vga-gl": ("virtio_gpu", "virtio VGA with OpenGL"),
    "vhost-user-vga": ("virtio_gpu", "virtio VGA, vhost-user"),
    "ati-vga": ("", "ATI VGA"),
}
_OTHER_PCI = {
    "virtio-balloon-pci": ("virtio_balloon", "virtio balloon"),
    "virtio-serial-pci": ("virtio_console", "virtio console"),
    "virtio-rng-pci": ("virtio-rng", "virtio random number generator"),
    "virtio-keyboard-pci": ("virtio_input", "virtio keyboard"),
    "virtio-mouse-pci": ("virtio_input", "virtio mouse"),
    "virtio-tablet-pci": ("virtio_input", "virtio tablet"),
    "virtio-multitouch-pci": ("virtio_input", "virtio multitouch"),
    "virtio-input-host-pci": ("virtio_input", "virtio input, of the host"),
    "vhost-user-input-pci": ("virtio_input", "virtio input, vhost-user"),
    "virtio-9p-pci": ("9pnet_virtio", "virtio 9p file system"),
    "vhost-user-fs-pci": ("virtiofs", "virtio file system, vhost-user"),
    "virtio-gpu-pci": ("virtio_gpu", "virtio GPU"),
    "virtio-gpu-gl-pci": ("virtio_gpu", "virtio GPU with OpenGL"),
    "vhost-user-gpu-pci": ("virtio_gpu", "virtio GPU, vhost-user"),
    "virtio-crypto-pci": ("virtio_crypto", "virtio crypto"),
    "virtio-pmem-pci": ("virtio_pmem", "virtio persistent memory"),
    "virtio-mem-pci": ("virtio_mem", "virtio memory"),
    "virtio-iommu-pci": ("virtio_iommu", "virtio IOMMU"),
    "virtio-sound-pci": ("virtio_snd", "virtio sound"),
    "vhost-vsock-pci": ("vmw_vsock_virtio_transport", "virtio socket, vhost"),
    "vhost-user-vsock-pci": ("vmw_vsock_virtio_transport", "virtio socket, vhost-user"),
    "vhost-user-rng-pci": ("virtio-rng", "virtio random number generator, vhost-user"),
    "vhost-user-i2c-pci": ("i2c_virtio", "virtio I2C, vhost-user"),
    "vhost-user-gpio-pci": ("gpio_virtio", "virtio GPIO, vhost-user"),
    "vfio-pci": ("", "a PCI device of the host (VFIO)"),
    "vfio-pci-nohotplug": ("", "a PCI device of the host (VFIO)"),
    "qemu-xhci": ("xhci_hcd", "QEMU XHCI USB controller"),
    "nec-usb-xhci": ("xhci_hcd", "NEC XHCI USB controller"),
    "usb-ehci": ("ehci-pci", "EHCI USB controller"),
    "pci-ohci": ("ohci-pci", "OHCI USB controller"),
    "piix3-usb-uhci": ("uhci_hcd", "PIIX3 UHCI USB controller"),
    "piix4-usb-uhci": ("uhci_hcd", "PIIX4 UHCI USB controller"),
    "vt82c686b-usb-uhci": ("uhci_hcd", "VT82C686B UHCI USB controller"),
    **{f"ich9-usb-ehci{n}": ("ehci-pci", "ICH9 EHCI USB controller") for n in (1, 2)},
    **{f"ich9-usb-uhci{n}": ("uhci_hcd", "ICH9 UHCI USB controller") for n in range(1, 7)},
    "AC97": ("snd_intel8x0", "Intel 82801AA AC97 audio"),
    "ES1370": ("snd_ens1370", "Ensoniq ES1370 audio"),
    "intel-hda": ("snd_hda_intel", "Intel HD audio (ICH6)"),
    "ich9-intel-hda": ("snd_hda_intel", "Intel HD audio (ICH9)"),
    "qxl": ("qxl", "Spice QXL GPU (secondary)"),
    "secondary-vga": ("bochs", "secondary VGA"),
    "bochs-display": ("bochs", "Bochs display"),
    "pci-serial": ("8250_pci", "PCI serial port"),
    "pci-serial-2x": ("8250_pci", "PCI serial ports"),
    "pci-serial-4x": ("8250_pci", "PCI serial ports"),
    "sdhci-pci": ("sdhci_pci", "SD host controller"),
    "i6300esb": ("i6300esb", "Intel 6300ESB watchdog"),
    "pvpanic-pci": ("pvpanic-pci", "paravirtual panic device"),
    "ivshmem-plain": ("", "inter-VM shared memory"),
    "ivshmem-doorbell": ("", "inter-VM shared memory"),
    "edu": ("", "QEMU educational device"),
    "pci-testdev": ("", "QEMU PCI test device"),
    "pvrdma": ("vmw_pvrdma", "VMware PVRDMA"),
    "tpci200": ("tpci200", "TEWS TPCI200 carrier"),
    "pci-ipmi-bt": ("ipmi_si", "PCI IPMI BT"),
    "pci-ipmi-kcs": ("ipmi_si", "PCI IPMI KCS"),
    "kvaser_pci": ("kvaser_pci", "Kvaser PCICANx"),
    "mioe3680_pci": ("plx_pci", "Mioe3680 PCICANx"),
    "pcm3680_pci": ("plx_pci", "Pcm3680i PCICANx"),
    "cxl-type3": ("cxl_pci", "CXL type 3 memory"),
}
#: Devices that take no place on a PCI bus, by the bus they do sit on.
_NOT_PCI = {
    "usb-bus": """u2f-emulated u2f-passthru usb-audio usb-bot usb-braille usb-bt-dongle usb-ccid usb-host
        usb-hub usb-kbd usb-mouse usb-mtp usb-net usb-redir usb-serial usb-tablet usb-wacom-tablet
        canokey""",
    "ISA": """adlib cs4231a floppy gus hyperv-testdev i8042 ib700 igd-passthrough-isa-bridge isa-applesmc
        isa-cirrus-vga isa-debug-exit isa-debugcon isa-fdc isa-ide isa-ipmi-bt isa-ipmi-kcs isa-parallel
        isa-serial isa-vga mc146818rtc ne2k_isa pc-testdev pvpanic sb16 sga tpm-tis""",
    "HDA": "hda-duplex hda-micro hda-output",
    "SCSI": "scsi-generic",
    "ccid-bus": "ccid-card-emulated ccid-card-passthru",
    "sd-bus": "emmc sd-card",
    "IndustryPack": "ipoctal232",
    "i2c-bus": "i2c-ddc smbus-ipmi",
    "virtio-serial-bus": "virtconsole virtserialport",
    "virtio-bus": """vhost-scsi vhost-user-blk vhost-user-fs-device vhost-user-gpu vhost-user-input
        vhost-user-scsi vhost-vsock-device virtio-9p-device virtio-balloon-device virtio-blk-device
        virtio-crypto-device virtio-gpu-device virtio-input-host-device virtio-keyboard-device
        virtio-mouse-device virtio-net-device virtio-rng-device virtio-scsi-device virtio-serial-device
        virtio-tablet-device""",
    "System": """amd-iommu guest-loader intel-iommu ipmi-bmc-extern ipmi-bmc-sim loader nvdimm nvme-ns
        nvme-subsys pc-dimm ramfb tpm-crb virtio-pmem vmclock vmcoreinfo vmgenid""",
}
#: QEMU's other names for the same models (``qdev_alias_table`` in ``system/qdev-monitor.c``).
ALIASES: dict[str, str] = {
    "ahci": "ich9-ahci",
    "e1000-82540em": "e1000",
    "lsi": "lsi53c895a",
    "ne2k-pci": "ne2k_pci",
    **{
        f"virtio-{name}": f"virtio-{name}-pci"
        for name in name_list(
            "9p balloon blk gpu input-host iommu keyboard mouse multitouch net rng scsi serial sound tablet"
        )
    },
}
#: The NIC models that ``-net nic,model=?`` listed for years (``pci_nic_models`` in ``hw/pci/pci.c``).
USUAL_NIC_MODELS = name_list("ne2k_pci i82551 i82557b i82559er rtl8139 e1000 pcnet virtio")
#: The names of ``-net nic,model=`` (``qemu_get_nic_models`` and its callers) and the device each makes.
NIC_MODELS: dict[str, str] = {
    **dict.fromkeys(USUAL_NIC_MODELS, ""),
    "virtio": "virtio-net-pci",
    **{name: name for name in _NICS},
    "virtio-net-pci-transitional": "virtio-net-pci-transitional",
    "virtio-net-pci-non-transitional": "virtio-net-pci-non-transitional",
}


def _table() -> dict[str, DeviceModel]:
    models: list[DeviceModel] = []
    for kind, table in (
        ("nic", _NICS),
        ("disk", _PCI_DISKS),
        ("controller", _CONTROLLERS),
        ("vga", _VGAS),
        ("other", _OTHER_PCI),
    ):
        for name, (driver, description) in table.items():
            models.append(DeviceModel(name, kind, "PCI", driver, description))
            # Devices of the first virtio generation also exist with their generation pinned (QEMU 4.0).
            if name in _TRANSITIONAL:
                for suffix in ("transitional", "non-transitional"):
                    models.append(
                        DeviceModel(f"{name}-{suffix}", kind, "PCI", driver, f"{description}, {suffix}")
                    )
    models += [DeviceModel(name, "bridge", "PCI", "pcieport", "PCI bridge") for name in _BRIDGES.split()]
    models += [DeviceModel(name, "disk", bus, driver, "") for name, (bus, driver) in _DISKS.items()]
    models += [
        DeviceModel(name, "other", bus, "", "") for bus, names in _NOT_PCI.items() for name in names.split()
    ]
    return {model.name: model for model in models}


_TRANSITIONAL = frozenset(
    name_list("""
        vhost-scsi-pci vhost-user-blk-pci vhost-user-scsi-pci vhost-vsock-pci virtio-9p-pci
        virtio-balloon-pci virtio-blk-pci virtio-input-host-pci virtio-net-pci virtio-rng-pci
        virtio-scsi-pci virtio-serial-pci
    """)
)
#: QEMU's name -> the model; aliases are not in it.
DEVICES: dict[str, DeviceModel] = _table()


def device_model(name: str) -> DeviceModel | None:
    """Return the model of that name or alias, or None."""
    return DEVICES.get(ALIASES.get(name, name))
