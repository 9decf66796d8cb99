"""NICs, and the back ends behind them: ``-net``, ``-netdev``, ``-nic``, ``-device`` of a NIC.

Source: QEMU's ``net/net.c`` (``net_init_clients``, ``net_client_init1``, ``net_param_nic``), ``net/tap.c``,
``net/hub.c`` and ``hw/net/virtio-net.c``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from iosim.errors import IosimError, nearest, unknown
from iosim.qemu.devices import DEVICES, NIC_MODELS, USUAL_NIC_MODELS, DeviceModel
from iosim.qemu.keys import BACKENDS, DEVICE_PROPERTIES, NET_LEGACY, NET_NIC, NIC
from iosim.qemu.machine import Nic
from iosim.qemu.name_list import name_list
from iosim.qemu.options import KeyValues
from iosim.qemu.slots import PciBuses

_MAX_QUEUES = 1024  # MAX_TAP_QUEUES in net/tap.c, MAX_QUEUE_NUM in include/net/net.h
_MAC = re.compile(r"[0-9a-fA-F]{1,2}([:-][0-9a-fA-F]{1,2}){5}\Z")
#: Back ends that are a tap, and can therefore carry the virtio-net header.
TAPS = ("tap", "bridge")
#: Models whose QEMU code asks the peer for the header (``qemu_using_vnet_hdr`` in hw/net).
_USE_VNET_HDR = ("virtio-net-pci", "e1000e", "igb", "vmxnet3")
_HELP = ("help", "?")
#: The classes of a virtio NIC within its PCI device, whose properties are the PCI device's too (virtio_instance_init).
_INNER = ("virtio-device", "virtio-net-device")
#: Classes above the NICs': a -global for one of them is for every NIC that is one.
NIC_CLASSES = ("device", "pci-device", "virtio-pci", "virtio-net-pci-base", "e1000-base", *_INNER)

#: Properties that are on or off, of the NICs whose properties are checked.
_ON_OFF = frozenset(
    name_list("""
        multifunction ioeventfd modern-pio-notify page-per-vq aer ats indirect_desc event_idx
        notify_on_empty any_layout iommu_platform packed queue_reset in_order csum guest_csum gso guest_tso4
        guest_tso6 guest_ecn guest_ufo guest_announce host_tso4 host_tso6 host_ecn host_ufo mrg_rxbuf status
        ctrl_vq ctrl_rx ctrl_vlan ctrl_rx_extra ctrl_mac_addr ctrl_guest_offloads mq rss hash guest_rsc_ext
        failover guest_uso4 guest_uso6 host_uso autonegotiation mitigation extra_mac_registers
        migrate_tso_props disable_vnet_hdr disable-modern
    """)
)
#: Properties that are numbers, with their ranges (C types of the Property tables).
_NUMBERS = {
    "vectors": (0, 2048),  # PCI 3.0, section 6.8.2: the MSI-X table has up to 2048 entries
    "host_mtu": (0, 65535),
    "x-txburst": (1, 2**31 - 1),
    "x-txtimer": (0, 2**32 - 1),
    "bootindex": (-1, 2**31 - 1),
}
#: VIRTIO_NET_RX_QUEUE_MIN_SIZE and VIRTQUEUE_MAX_SIZE of hw/net/virtio-net.c and include/hw/virtio/virtio.h.
_QUEUE_SIZE_MIN, _QUEUE_SIZE_MAX = 256, 1024


@dataclass
class Backend:
    """One back end, and who uses it."""

    kind: str
    id: str
    arguments: KeyValues
    queues: int = 1
    hub: int | None = None
    used_by: str = ""

    @property
    def wants_vhost(self) -> bool:
        """Whether its keys ask for vhost (``net_init_tap_one``)."""
        if self.kind in ("vhost-user", "vhost-vdpa"):
            return True
        if self.kind != "tap":
            return False
        implied = "vhostfd" in self.arguments.values or self.arguments.boolean("vhostforce")
        return self.arguments.boolean("vhost", implied)


class Network:
    """The network of one machine while it is put together."""

    def __init__(self, default_model: str, buses: PciBuses, chardevs: set[str]) -> None:
        self._default_model = default_model
        self._buses = buses
        self._chardevs = chardevs
        self._netdevs: dict[str, Backend] = {}
        self._hubs: dict[int, list[Backend]] = {}
        self._hub_nics: dict[int, int] = {}
        # A hub's back ends are complete only after the last option, so its NICs are made at the end.
        self._pending: list[tuple[DeviceModel, KeyValues, dict[str, str], Backend | int | None, str]] = []
        #: Driver, property, value and place of each -global.
        self.globals: list[tuple[str, str, str, str]] = []
        self._used: set[str] = set()
        self.warnings: list[str] = []

    # -- options ---------------------------------------------------------------------------------

    def add_netdev(self, arguments: KeyValues) -> None:
        """Take one -netdev."""
        if arguments.head in _HELP:
            raise _lists(arguments, "back ends", BACKENDS)
        if not arguments.head:
            raise arguments.error(f"has no type; there is {', '.join(BACKENDS)}")
        if arguments.head not in BACKENDS:
            raise _no_such("-netdev back end", arguments.head, BACKENDS, BACKENDS, arguments.where)
        arguments.check_keys(BACKENDS[arguments.head] | {"id"}, _nested(arguments.head))
        name = arguments.identifier()
        if not name:
            raise arguments.error(f"{arguments.head} has no id=; a NIC needs it for its netdev=")
        backend = self._backend(arguments, name)
        if backend.kind == "hubport":
            backend.hub = self._hubport(arguments)
        self._register(backend)

    def add_nic(self, arguments: KeyValues) -> None:
        """Take one -nic: a back end and its NIC at once, without a hub."""
        if arguments.head in _HELP or arguments.values.get("model") in _HELP:
            raise _lists(arguments, "NIC models", NIC_MODELS)
        if arguments.head == "none":
            arguments.check_keys(NIC)
            return
        valid = [*(name for name in BACKENDS if name != "hubport"), "none"]
        if not arguments.head:
            raise arguments.error(f"has no type; there is {', '.join(sorted(valid))}")
        if arguments.head not in valid:
            raise _no_such("-nic back end", arguments.head, valid, valid, arguments.where)
        arguments.check_keys(BACKENDS[arguments.head] | NIC, _nested(arguments.head))
        model = self._nic_model(arguments)
        properties = self._properties(model, arguments, {"mac": arguments.text("mac")})
        backend = self._backend(arguments, arguments.identifier() or f"#nic{len(self._netdevs)}")
        self._register(backend)
        backend.used_by = model.name
        self._place(model, arguments, properties, backend, "")

    def add_net(self, arguments: KeyValues) -> None:
        """Take one -net: a NIC or a back end on the hub (before QEMU 3.0, on the hub that vlan= names)."""
        kind = arguments.head
        if kind in _HELP:
            raise _lists(arguments, "types", [*BACKENDS, "nic", "none"])
        if kind == "nic":
            self._add_net_nic(arguments)
            return
        valid = [name for name in (*BACKENDS, "none", "nic") if name not in ("hubport", "vhost-user")]
        if not kind:
            raise arguments.error(f"has no type; there is {', '.join(sorted(valid))}")
        if kind not in valid:
            raise _no_such("-net type", kind, valid, valid, arguments.where)
        if kind == "none":
            arguments.check_keys(NET_LEGACY)
            return
        arguments.check_keys(BACKENDS[kind] | NET_LEGACY, _nested(kind))
        backend = self._backend(arguments, arguments.identifier())
        if backend.queues > 1:
            raise arguments.error("a multiqueue tap cannot be used with the hub of -net; use -netdev")
        if backend.wants_vhost:
            self.warnings.append(
                f"{arguments.where}: vhost=on has no effect behind the hub of -net; it needs -netdev"
            )
        self._hubs.setdefault(self._vlan(arguments), []).append(backend)

    def add_default(self, source: str) -> None:
        """Add what QEMU adds by itself when no network option is given: ``-net nic -net user``."""
        self.add_net(KeyValues("nic", {}, "the default NIC", source))
        self.add_net(KeyValues("user", {}, "the default NIC", source))

    def add_device(self, model: DeviceModel, arguments: KeyValues, bus: str) -> None:
        """Take one -device of a NIC."""
        values = {key: value for key, value in arguments.values.items() if key not in ("id", "bus", "addr")}
        netdev = values.pop("netdev", None)
        peer: Backend | int | None = None
        if netdev is not None:
            peer = self._claim(netdev, model.name, arguments)
        elif "vlan" in values:
            peer = self._vlan(arguments)
            del values["vlan"]
        properties = self._properties(model, arguments, values)
        self._place(model, arguments, properties, peer, arguments.text("addr"), bus)

    # -- the result ------------------------------------------------------------------------------

    def nics(self) -> list[Nic]:
        """Join NICs and back ends, in the order in which QEMU creates the NICs."""
        result = []
        for model, arguments, properties, peer, slot in self._pending:
            result.append(self._nic(model, arguments, properties, peer, slot))
        for hub, backends in self._hubs.items():
            if backends and not self._hub_nics.get(hub):
                self.warnings.append(
                    f"{backends[0].arguments.where}: no NIC is joined to the hub of this "
                    f"'-net {backends[0].kind}'; was '-net nic' meant as well?"
                )
        for backend in self._netdevs.values():
            if not backend.used_by:
                self.warnings.append(
                    f"{backend.arguments.where}: no NIC uses the netdev '{backend.id}'; "
                    f"it takes a -device with netdev={backend.id}"
                )
        return result

    def _nic(
        self,
        model: DeviceModel,
        arguments: KeyValues,
        properties: dict[str, str],
        peer: Backend | int | None,
        slot: str,
    ) -> Nic:
        hub = peer.hub if isinstance(peer, Backend) else peer
        if hub is not None:
            backends = self._hubs.get(hub, [])
        else:
            backends = [peer] if isinstance(peer, Backend) else []
        if not backends:
            self.warnings.append(f"{arguments.where}: the NIC {model.name} has no back end")
        kind = "+".join(backend.kind for backend in backends) or "none"
        only = backends[0] if len(backends) == 1 else None
        direct = only is not None and hub is None
        is_virtio = model.name.startswith("virtio-")
        wants_vhost = only is not None and direct and only.wants_vhost
        if wants_vhost and not is_virtio:
            self.warnings.append(
                f"{arguments.where}: QEMU ignores vhost=on for {model.name}: vhost serves virtqueues, "
                "so only virtio NICs have it"
            )
        vnet_hdr = (
            only is not None
            and direct
            and (only.kind in TAPS or only.kind in ("vhost-user", "vhost-vdpa"))
            and model.name.startswith(_USE_VNET_HDR)
            and only.arguments.boolean("vnet_hdr", True)
            and properties.get("disable_vnet_hdr", "off") not in ("on", "yes", "true", "y")
        )
        if is_virtio:
            self._check_queue_sizes(properties, arguments, only.kind if only else "none")
        return Nic(
            model=model.name,
            guest_driver=model.guest_driver,
            backend=kind,
            vhost=wants_vhost and is_virtio,
            through_hub=hub is not None,
            vnet_hdr=vnet_hdr,
            queues=only.queues if only else 1,
            slot=slot,
            properties=properties,
            line=arguments.line,
            backend_options=dict(only.arguments.values) if only else {},
            where=arguments.where,
        )

    # -- parts -----------------------------------------------------------------------------------

    def _add_net_nic(self, arguments: KeyValues) -> None:
        if any(word in arguments.values for word in _HELP) or arguments.values.get("model") in _HELP:
            raise _lists(arguments, "NIC models", NIC_MODELS)
        arguments.check_keys(NET_NIC)
        model = self._nic_model(arguments)
        given = {"mac": arguments.text("macaddr"), "vectors": arguments.text("vectors")}
        properties = self._properties(model, arguments, given)
        peer: Backend | int
        if "netdev" in arguments.values:
            peer = self._claim(arguments.text("netdev"), model.name, arguments)
        else:
            peer = self._vlan(arguments)
        self._place(model, arguments, properties, peer, arguments.text("addr"))

    def _nic_model(self, arguments: KeyValues) -> DeviceModel:
        name = arguments.text("model", self._default_model)
        if name not in NIC_MODELS:
            raise _no_such(
                f"{arguments.option} NIC model", name, NIC_MODELS, USUAL_NIC_MODELS, arguments.where
            )
        return DEVICES[NIC_MODELS[name]]

    def _place(
        self,
        model: DeviceModel,
        arguments: KeyValues,
        properties: dict[str, str],
        peer: Backend | int | None,
        address: str,
        bus: str = "",
    ) -> None:
        slot = self._buses.place(model.name, address, arguments.option, arguments.where, bus)
        hub = peer.hub if isinstance(peer, Backend) else peer
        if hub is not None:
            self._hub_nics[hub] = self._hub_nics.get(hub, 0) + 1
        self._pending.append((model, arguments, properties, peer, slot))

    def _backend(self, arguments: KeyValues, name: str) -> Backend:
        kind = arguments.head
        for key in ("vhost", "vhostforce", "vnet_hdr", "restrict", "x-svq"):
            arguments.boolean(key)
        arguments.integer("poll-us", 0, 2**32 - 1)
        queues = arguments.integer("queues", 1, _MAX_QUEUES, 1)
        if kind == "tap":
            queues = self._tap_queues(arguments, queues)
        chardev = arguments.values.get("chardev")
        if kind == "vhost-user":
            if not chardev:
                raise arguments.error("vhost-user has no chardev=; it takes the id of a -chardev socket")
            if not self._chardevs:
                raise arguments.error(
                    f"there is no chardev '{chardev}'; it takes a -chardev socket with id={chardev}"
                )
            if chardev not in self._chardevs:
                raise unknown(f"{arguments.option} chardev", chardev, self._chardevs, arguments.where)
        if kind in ("netmap", "af-xdp") and "ifname" not in arguments.values:
            raise arguments.error(f"{kind} has no ifname=")
        return Backend(kind, name, arguments, queues)

    def _tap_queues(self, arguments: KeyValues, queues: int) -> int:
        values = arguments.values
        if "fd" in values:
            for key in ("ifname", "script", "downscript", "vnet_hdr", "helper", "queues", "fds", "vhostfds"):
                if key in values:
                    raise arguments.error(f"{key}= is invalid with fd=")
        if "vhostfd" in values and not arguments.boolean("vhost", True):
            raise arguments.error("vhostfd= is not valid without vhost")
        if "fds" in values:
            return min(len(values["fds"].split(":")), _MAX_QUEUES)
        return queues

    def _register(self, backend: Backend) -> None:
        if backend.id in self._netdevs:
            first = self._netdevs[backend.id].arguments.where
            raise backend.arguments.error(f"duplicate id '{backend.id}'; the first is in {first}")
        self._netdevs[backend.id] = backend

    def _claim(self, name: str, user: str, arguments: KeyValues) -> Backend:
        backend = self._netdevs.get(name)
        if backend is None:
            named = [known for known in self._netdevs if not known.startswith("#")]
            if not named:
                raise arguments.error(f"there is no netdev '{name}'; it takes a -netdev with id={name}")
            raise unknown(f"{arguments.option} {user} netdev", name, named, arguments.where)
        if backend.used_by:
            raise arguments.error(
                f"the netdev '{name}' is in use by {backend.used_by}; a netdev serves one NIC"
            )
        backend.used_by = user
        return backend

    def _vlan(self, arguments: KeyValues) -> int:
        hub = arguments.integer("vlan", 0, 2**31 - 1)
        self._hubs.setdefault(hub, [])
        return hub

    def _hubport(self, arguments: KeyValues) -> int:
        if "hubid" not in arguments.values:
            raise arguments.error("hubport has no hubid=")
        hub = arguments.integer("hubid", 0, 2**31 - 1)
        self._hubs.setdefault(hub, [])
        netdev = arguments.values.get("netdev")
        if netdev is not None:
            self._hubs[hub].append(self._claim(netdev, "hubport", arguments))
        return hub

    def _properties(self, model: DeviceModel, arguments: KeyValues, given: dict[str, str]) -> dict[str, str]:
        """Join the properties given with those of -global, and check both."""
        known = DEVICE_PROPERTIES.get(model.name)
        values = {**self._globals_of(model), **{k: v for k, v in given.items() if v != ""}}
        checked = KeyValues(model.name, values, arguments.option, arguments.where, arguments.line)
        if known is not None:
            checked.check_keys(known, ("x-",))
        for key in values:
            if key in _ON_OFF:
                checked.boolean(key)
            elif key in _NUMBERS:
                checked.integer(key, *_NUMBERS[key])
        mac = values.get("mac")
        if mac is not None and not _MAC.match(mac):
            raise arguments.error(f"mac={mac}: expects six bytes in hexadecimal, as in 52:54:00:12:34:56")
        tx = values.get("tx")
        if tx is not None and tx not in ("bh", "timer"):
            self.warnings.append(f"{arguments.where}: tx={tx} is neither 'bh' nor 'timer'; QEMU takes bh")
            values["tx"] = "bh"
        return values

    def _globals_of(self, model: DeviceModel) -> dict[str, str]:
        """Return what -global says of a NIC, by any of its classes; the PCI device's own word is the last."""
        outer = [model.name, "device", "pci-device"]
        inner: tuple[str, ...] = ()
        if model.name.startswith("virtio-net-pci"):
            outer += ["virtio-pci", "virtio-net-pci-base"]
            inner = _INNER
        elif model.name.startswith("e1000") and model.name != "e1000e":
            outer.append("e1000-base")
        self._used |= {*outer, *inner}
        return {
            name: value
            for classes in (inner, outer)
            for driver, name, value, _ in self.globals
            if driver in classes
        }

    def unused_globals(self) -> list[str]:
        """Return a remark on each -global that is for something else than the NICs."""
        unused = [f"{driver}.{name}" for driver, name, _, _ in self.globals if driver not in self._used]
        return [f"of no matter to the I/O path: -global {', '.join(unused)}"] if unused else []

    def _check_queue_sizes(self, properties: dict[str, str], arguments: KeyValues, backend: str) -> None:
        """Check ring sizes as ``virtio_net_device_realize`` does (QEMU 8.1)."""
        checked = KeyValues("", properties, arguments.option, arguments.where)
        # virtio_net_max_tx_queue_size: only these two can take more than the default.
        tx_max = _QUEUE_SIZE_MAX if backend in ("vhost-user", "vhost-vdpa") else _QUEUE_SIZE_MIN
        for key, high in (("rx_queue_size", _QUEUE_SIZE_MAX), ("tx_queue_size", tx_max)):
            size = checked.integer(key, -(2**31), 2**31, _QUEUE_SIZE_MIN)
            if not _QUEUE_SIZE_MIN <= size <= high or size & (size - 1):
                expected = f"a power of 2 from {_QUEUE_SIZE_MIN} to {high}"
                if high == _QUEUE_SIZE_MIN:
                    expected = f"{high} with the back end {backend}; more takes vhost-user or vhost-vdpa"
                raise arguments.error(f"{key}={size}: expects {expected}")


def _no_such(what: str, name: str, valid: Iterable[str], usual: Iterable[str], where: str) -> IosimError:
    """Build the error for an unknown name; one that is like no other gets the list of the usual ones."""
    known = list(valid)
    if nearest(name, known) is None:
        return IosimError(f"unknown {what} '{name}'; there is {', '.join(usual)}", where)
    return unknown(what, name, known, where)


def _nested(kind: str) -> tuple[str, ...]:
    # JSON lists and sockets arrive as nested keys.
    return ("addr.", "local.", "remote.") if kind in ("stream", "dgram") else ()


def _lists(arguments: KeyValues, what: str, names: object) -> IosimError:
    known = ", ".join(str(name) for name in names) if isinstance(names, (dict, list)) else ""
    return arguments.error(f"this lists {what} and builds no machine; there is {known}")
