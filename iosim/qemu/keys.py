"""The keys that QEMU accepts in the options iosim reads.

Sources: ``qapi/net.json`` (back ends), ``net/net.c`` (``-net nic``, ``-nic``), the ``Property`` tables of
``hw/net/*.c``, ``hw/virtio/virtio*.c``, ``hw/block/virtio-blk.c`` and ``hw/pci/pci.c``, and
``blockdev.c`` with ``qapi/block-core.json`` (``-drive``), QEMU 2.5 to 10.1.
"""

from __future__ import annotations

from iosim.qemu.name_list import name_list

#: Back end of -netdev, -nic and -net -> its keys, beyond id.
BACKENDS: dict[str, frozenset[str]] = {
    name: frozenset(keys.split())
    for name, keys in {
        "user": """hostname restrict ipv4 ipv6 ip net host tftp bootfile dhcpstart dns dnssearch domainname
            ipv6-prefix ipv6-prefixlen ipv6-host ipv6-dns smb smbserver hostfwd guestfwd tftp-server-name""",
        "tap": """ifname fd fds script downscript br helper sndbuf vnet_hdr vhost vhostfd vhostfds vhostforce
            queues poll-us""",
        "bridge": "br helper",
        "socket": "fd listen connect mcast localaddr udp",
        "stream": """addr.type addr.host addr.port addr.path addr.str addr.ipv4 addr.ipv6 addr.abstract
            server reconnect reconnect-ms""",
        "dgram": """local.type local.host local.port local.path local.str remote.type remote.host remote.port
            remote.path remote.str""",
        "vde": "sock port group mode",
        "l2tpv3": """src dst srcport dstport ipv6 udp cookie64 counter pincounter txcookie rxcookie txsession
            rxsession offset""",
        "netmap": "ifname devname",
        "af-xdp": """ifname mode force-copy queues start-queue inhibit sock-fds map-path map-start-index""",
        "hubport": "hubid netdev",
        "vhost-user": "chardev vhostforce queues",
        "vhost-vdpa": "vhostdev vhostfd queues x-svq",
        "passt": """path quiet vhost-user mtu address netmask mac gateway interface outbound outbound-if4
            outbound-if6 dns search fqdn dhcp-dns dhcp-search map-host-loopback map-guest-addr dns-forward
            dns-host tcp udp icmp dhcp ndp dhcpv6 ra freebind ipv4 ipv6 tcp-ports udp-ports param""",
    }.items()
}
#: Keys of -net nic; vlan and name are from before QEMU 3.0.
NET_NIC = frozenset(name_list("netdev macaddr model addr vectors id name vlan"))
#: Keys that every -net back end took before QEMU 3.0.
NET_LEGACY = frozenset(name_list("id name vlan"))
#: What -nic takes for the NIC, beside the keys of its back end.
NIC = frozenset(name_list("id model mac"))

_PCI = frozenset(
    name_list("""
        id bus addr multifunction romfile rombar romsize bootindex acpi-index failover_pair_id
        command_serr_enable sriov-pf
    """)
)
_NIC_DEVICE = _PCI | frozenset(name_list("netdev mac vlan"))
_VIRTIO_PCI = _PCI | frozenset(
    name_list("""
        ioeventfd vectors disable-legacy disable-modern modern-pio-notify page-per-vq aer ats indirect_desc
        event_idx notify_on_empty any_layout iommu_platform packed queue_reset in_order use-started
        use-disabled-flag virtio-pci-bus-master-bug-migration migrate-extra class
    """)
)
_VIRTIO_NET = (
    _VIRTIO_PCI
    | _NIC_DEVICE
    | frozenset(
        name_list("""
            tx csum guest_csum gso guest_tso4 guest_tso6 guest_ecn guest_ufo guest_announce host_tso4
            host_tso6 host_ecn host_ufo mrg_rxbuf status ctrl_vq ctrl_rx ctrl_vlan ctrl_rx_extra
            ctrl_mac_addr ctrl_guest_offloads mq rss hash hash-ipv4 hash-tcp4 hash-udp4 hash-ipv6 hash-tcp6
            hash-udp6 ebpf-rss-fds guest_rsc_ext rsc_interval rx_queue_size tx_queue_size host_mtu speed
            duplex failover guest_uso4 guest_uso6 host_uso
        """)
    )
)
_E1000 = _NIC_DEVICE | frozenset(
    name_list("autonegotiation mitigation extra_mac_registers migrate_tso_props init-vet")
)
_VIRTIO_BLK = _VIRTIO_PCI | frozenset(
    name_list("""
        drive logical_block_size physical_block_size min_io_size opt_io_size discard_granularity write-cache
        share-rw account-invalid account-failed stats-intervals rerror werror cyls heads secs lcyls lheads
        lsecs bios-chs-trans serial config-wce scsi request-merging num-queues queue-size seg-max-adjust
        discard report-discard-granularity write-zeroes max-discard-sectors max-write-zeroes-sectors
        iothread iothread-vq-mapping backend_defaults
    """)
)

#: Device model -> its properties; a model that is not in it is not checked. Keys with ``x-`` always pass:
#: they are experimental or for old machine types, and come and go.
DEVICE_PROPERTIES: dict[str, frozenset[str]] = {
    "virtio-net-pci": _VIRTIO_NET,
    "virtio-net-pci-transitional": _VIRTIO_NET,
    "virtio-net-pci-non-transitional": _VIRTIO_NET,
    "e1000": _E1000,
    "e1000-82544gc": _E1000,
    "e1000-82545em": _E1000,
    "e1000e": _NIC_DEVICE | {"disable_vnet_hdr", "subsys_ven", "subsys", "init-vet", "migrate-timadj"},
    "rtl8139": _NIC_DEVICE,
    "ne2k_pci": _NIC_DEVICE,
    "pcnet": _NIC_DEVICE,
    "vmxnet3": _NIC_DEVICE,
    "virtio-blk-pci": _VIRTIO_BLK,
    "virtio-blk-pci-transitional": _VIRTIO_BLK,
    "virtio-blk-pci-non-transitional": _VIRTIO_BLK,
    "virtio-balloon-pci": _VIRTIO_PCI
    | frozenset(
        name_list("""
            deflate-on-oom free-page-hint free-page-reporting guest-stats-polling-interval page-poison
            qemu-4-0-config-size iothread
        """)
    ),
}

#: The interfaces of -drive if= (``if_name`` in ``blockdev.c``).
DRIVE_INTERFACES = ("none", "ide", "scsi", "floppy", "pflash", "mtd", "sd", "virtio", "xen")
DRIVE = frozenset(
    name_list("""
        file if bus unit index media snapshot cache aio format driver id serial werror rerror readonly
        read-only auto-read-only force-share copy-on-read discard detect-zeroes addr boot cyls heads secs
        trans node-name bps bps_rd bps_wr iops iops_rd iops_wr bps_max bps_rd_max bps_wr_max iops_max
        iops_rd_max iops_wr_max iops_size group filename locking pr-manager backing lazy-refcounts
        pass-discard-request pass-discard-snapshot pass-discard-other overlap-check cache-size l2-cache-size
        l2-cache-entry-size refcount-cache-size cache-clean-interval offset size drop-cache host port path
        export url server pool image user volume stats-account-invalid stats-account-failed stats-intervals
    """)
)
#: Nested keys, as in ``file.filename=`` and ``throttling.iops-total=``.
DRIVE_PREFIXES = ("file.", "cache.", "throttling.", "throttling-", "backing.", "encrypt.", "overlap-check.",
                  "server.", "x-")  # fmt: skip
