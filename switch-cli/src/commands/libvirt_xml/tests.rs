//! Golden output: what is printed for each kind of port.

use switch_core::control::wire::PortView;

use super::{super::vm::tests::view, *};

fn rendered(view: &PortView) -> anyhow::Result<Rendered> {
    render(&view.spec, &Wire::of(view)?, "02:00:00:00:00:01", "7.2".parse().expect("a version"))
}

fn check(spec: &str, expected: &str) -> Vec<String> {
    checked(&view(spec, Some("tun")), expected)
}

fn checked(view: &PortView, expected: &str) -> Vec<String> {
    let rendered = rendered(view).expect("XML");
    assert_eq!(rendered.xml.trim(), expected.trim(), "{}", view.spec.name);
    rendered.notes
}

#[test]
fn vhost_user() {
    let memory = "
<!-- The memory of the machine must be shared with the switch: once in <domain>, beside <devices>:
<memoryBacking>
  <source type='memfd'/>
  <access mode='shared'/>
</memoryBacking>
-->
";
    let notes = check(
        "vm1=vhost-user,path=/run/vm1.sock,owner=64055",
        &format!(
            "{memory}<interface type='vhostuser'>
  <mac address='02:00:00:00:00:01'/>
  <source type='unix' path='/run/vm1.sock' mode='client'>
    <reconnect enabled='yes' timeout='1'/>
  </source>
  <model type='virtio'/>
</interface>"
        ),
    );
    assert_eq!(notes, Vec::<String>::new(), "the socket has an owner");
    let notes = check(
        "vm1=vhost-user,path=/run/vm1.sock,queues=2,mode=client",
        &format!(
            "{memory}<interface type='vhostuser'>
  <mac address='02:00:00:00:00:01'/>
  <source type='unix' path='/run/vm1.sock' mode='server'/>
  <model type='virtio'/>
  <driver queues='2'/>
</interface>"
        ),
    );
    assert!(notes[0].contains("directory must be writable"), "{notes:?}");
}

#[test]
fn streams_and_datagrams() {
    check(
        "s=stream,address=127.0.0.1:7001",
        "
<interface type='client'>
  <mac address='02:00:00:00:00:01'/>
  <source address='127.0.0.1' port='7001'/>
  <model type='virtio'/>
</interface>",
    );
    check(
        "s=stream,address=127.0.0.1:7001,mode=client",
        "
<interface type='server'>
  <mac address='02:00:00:00:00:01'/>
  <source address='127.0.0.1' port='7001'/>
  <model type='virtio'/>
</interface>",
    );
    check(
        "d=dgram,address=127.0.0.1:7001,peer=127.0.0.1:7002",
        "
<interface type='udp'>
  <mac address='02:00:00:00:00:01'/>
  <source address='127.0.0.1' port='7001'>
    <local address='127.0.0.1' port='7002'/>
  </source>
  <model type='virtio'/>
</interface>",
    );
    let mut odd = view("s=stream,path=/run/s,mode=client", None);
    odd.spec.path = Some("/run/a&b's".into());
    let notes = checked(
        &odd,
        "
<!-- In <domain>, beside <devices>: libvirt has no <interface> for this wire. -->
<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <qemu:arg value='-netdev'/>
  <qemu:arg value='stream,id=net-s,server=on,addr.type=unix,addr.path=/run/a&amp;b&apos;s'/>
  <qemu:arg value='-device'/>
  <qemu:arg value='virtio-net-pci,netdev=net-s,mac=02:00:00:00:00:01,addr=0x10'/>
</qemu:commandline>",
    );
    assert!(notes[0].contains("slot 0x10") && notes[1].contains("AppArmor"), "{notes:?}");
}

#[test]
fn taps_behind_packet_ports() {
    let mut several = view("up=packet,device=tap4", Some("tun"));
    several.multi_queue = true;
    checked(
        &several,
        "
<interface type='ethernet'>
  <mac address='02:00:00:00:00:01'/>
  <target dev='tap4' managed='no'/>
  <model type='virtio'/>
  <driver queues='2'/>
</interface>",
    );
    let missing = rendered(&view("tap4=packet", None)).expect("XML");
    assert!(missing.notes[0].contains("ip tuntap add tap4 mode tap"), "{:?}", missing.notes);
}

#[test]
fn what_libvirt_cannot_express_is_an_error() {
    for (spec, part) in [("t=packet,netns=blue", "namespace blue"), ("t=tap", "tap port")] {
        let error = rendered(&view(spec, Some("tun"))).expect_err(spec);
        assert!(error.to_string().contains(part), "{spec}: {error}");
    }
}
