use super::*;

/// Runs command lines, each a transaction of its own; what they print.
fn session(model: &mut Model, lines: &[&str]) -> Vec<Result<String, String>> {
    let mut results = Vec::new();
    for line in lines {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let result = parse(&words)
            .and_then(|(_, commands)| commands.iter().try_for_each(check).map(|()| commands))
            .and_then(|commands| transact(model.clone(), &commands));
        results.push(match result {
            Ok((out, after)) => {
                *model = after;
                Ok(out)
            }
            Err(failure) => Err(failure.message),
        });
    }
    results
}

fn done(model: &mut Model, line: &str) -> String {
    session(model, &[line]).remove(0).unwrap_or_else(|e| panic!("{line}: {e}"))
}

/// Ports with their attachments, one a line.
fn ports(model: &Model) -> String {
    let line = |p: &PortSpec| {
        format!(
            "{}={} {}\n",
            p.name,
            p.kind.name(),
            p.domains.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        )
    };
    model.ports.values().map(line).collect()
}

fn domains(model: &Model) -> Vec<&str> {
    model.domains.keys().map(String::as_str).collect()
}

#[test]
fn vlans_are_domains_while_a_port_names_them() {
    let mut model = Model::default();
    done(&mut model, "add-br b");
    done(&mut model, "add-port b eth1");
    done(&mut model, "add-port b v1 tag=10 -- add-port b v2 tag=20");
    assert_eq!(domains(&model), ["b", "b.10", "b.20"]);
    let expected = "\
b=tap b b.10:tag=10 b.20:tag=20
eth1=packet b b.10:tag=10 b.20:tag=20
v1=packet b.10
v2=packet b.20
";
    assert_eq!(ports(&model), expected);
    assert_eq!(done(&mut model, "list-br"), "b\n");
    assert_eq!(done(&mut model, "list-ports b"), "eth1\nv1\nv2\n");
    assert_eq!(done(&mut model, "port-to-br v2"), "b\n");
    done(&mut model, "add-port b t trunks=10,30 vlan_mode=native-untagged tag=20");
    assert!(ports(&model).contains("t=packet b.20 b.10:tag=10 b.30:tag=30\n"), "{}", ports(&model));
    done(&mut model, "del-port t -- del-port v2");
    assert_eq!(domains(&model), ["b", "b.10"]);
    done(&mut model, "clear Port v1 tag");
    assert_eq!((domains(&model), ports(&model).as_str()), (vec!["b"], "b=tap b\neth1=packet b\nv1=packet b\n"));
    done(&mut model, "del-br b");
    assert!(model.domains.is_empty() && model.ports.is_empty());
}

#[test]
fn what_others_made_is_left_alone() {
    let mut alone = PortSpec::new("alone", Kind::Tap);
    alone.domains = vec!["b.7".parse().expect("valid")];
    let mut isolated = PortSpec::new("v1", Kind::Packet);
    isolated.domains = vec!["b:isolated".parse().expect("valid")];
    isolated.labels.insert(BRIDGE.into(), "b".into());
    let domains_of = |names: &[&str]| names.iter().map(|name| name.parse().expect("valid")).collect();
    let mut model = Model::new(domains_of(&["b", "b.7", "b.x"]), vec![alone, isolated]);
    done(&mut model, "add-port b eth1");
    assert_eq!(ports(&model), "alone=tap b.7\neth1=packet b b.7:tag=7\nv1=packet b:isolated b.7:tag=7\n");
    assert_eq!(done(&mut model, "list-br"), "b\nb.x\n");
    assert_eq!(done(&mut model, "list-ports b"), "alone\neth1\nv1\n");
    done(&mut model, "del-port eth1");
    assert_eq!(domains(&model), ["b", "b.7", "b.x"]);
}

/// Word for word what libvirt 9.0 executes for interfaces of a running machine.
#[test]
fn what_libvirt_says_is_understood() {
    let mut model = Model::default();
    done(&mut model, "add-br ovsbr");
    let ids = |port: &str| {
        format!(
            "-- set Interface {port} external-ids:attached-mac=\"52:54:00:00:00:01\" -- set Interface {port} external-ids:iface-id=\"37cdfeae-8b5c-4f50-83a4-f54c8134efee\" -- set Interface {port} external-ids:vm-id=\"12570195-368f-4d90-972d-88a505d2e7e8\" -- set Interface {port} external-ids:iface-status=active"
        )
    };
    done(&mut model, &format!("--timeout=5 -- --may-exist add-port ovsbr ov1 {}", ids("ov1")));
    done(
        &mut model,
        &format!(
            "--timeout=5 -- --may-exist add-port ovsbr ov3 vlan_mode=native-untagged tag=123 trunk=42,123 {}",
            ids("ov3")
        ),
    );
    assert!(ports(&model).contains("ov3=packet ovsbr.123 ovsbr.42:tag=42\n"), "{}", ports(&model));
    for table in ["queue", "qos"] {
        let find = format!(
            "--timeout=5 --no-heading --columns=_uuid find {table} external-ids:vm-id=\"x\" external-ids:ifname=\"ov1\""
        );
        assert_eq!(done(&mut model, &find), "");
    }
    done(&mut model, "--timeout=5 set Interface ov1 ingress_policing_rate=0 ingress_policing_burst=0");
    done(
        &mut model,
        "--timeout=5 -- --if-exists clear Port ov1 tag -- --if-exists clear Port ov1 trunk -- --if-exists clear Port ov1 vlan_mode -- --if-exists set Port ov1 tag=7",
    );
    assert!(ports(&model).contains("ov1=packet ovsbr.7\n"), "{}", ports(&model));
    assert_eq!(done(&mut model, "get Interface ov1 external_ids:attached-mac"), "\"52:54:00:00:00:01\"\n");
    // A migration's other side is given what this side prints.
    assert_eq!(done(&mut model, "--timeout=5 --if-exists get Interface ov1 external_ids:PortData"), "\n");
    done(&mut model, "--timeout=5 set Interface ov1 external_ids:PortData=\"a,b=c\"");
    assert_eq!(done(&mut model, "--timeout=5 --if-exists get Interface ov1 external_ids:PortData"), "\"a,b=c\"\n");
    let list = "--timeout=5 --if-exists --format=list --data=json --no-headings --columns=statistics list Interface";
    assert_eq!(done(&mut model, &format!("{list} ov1")), "[\"map\",[]]\n");
    assert_eq!(done(&mut model, &format!("{list} nope")), "");
    assert_eq!(done(&mut model, "--timeout=5 iface-to-br ov1"), "ovsbr\n");
    done(
        &mut model,
        "add-port ovsbr vh -- set Interface vh type=dpdkvhostuserclient options:vhost-server-path=/run/vm/one.sock",
    );
    let find = "--timeout=5 --no-headings --columns=name find Interface options:vhost-server-path=/run/vm/one.sock";
    assert_eq!(done(&mut model, find), "vh\n");
    assert_eq!(done(&mut model, "--timeout=5 get Interface one.sock name"), "vh\n");
    // The same port again, in another VLAN: what is said now holds.
    done(&mut model, "--timeout=5 -- --may-exist add-port ovsbr ov3 tag=9");
    assert!(ports(&model).contains("ov3=packet ovsbr.9\n"), "{}", ports(&model));
    done(&mut model, "--timeout=5 -- --if-exists del-port ov1 -- --if-exists del-port ov3 -- --if-exists del-port ov3");
    assert_eq!(domains(&model), ["ovsbr"]);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let mut model = Model::default();
    done(&mut model, "add-br b -- add-port b p");
    let before = (model.domains.clone(), model.ports.clone());
    for (line, part) in [
        ("set-controller b tcp:127.0.0.1", "vswitch knows: init show add-br"),
        ("add-br x b 10", "no fake bridges"),
        ("add-port b q tag=5 -- set Interface p type=vxlan", "type=vxlan"),
        ("add-port b q -- set Port q vlan_mode=native-tagged", "needs tag=VLAN"),
        ("add-port b q tag=5 -- set Port q vlan_mode=dot1q-tunnel", "or native-tagged"),
        ("set Port p tag=4095", "4095 is not a VLAN id"),
        ("set Interface p ingress_policing_rate=1000", "does not limit rates"),
        ("set port p qos=@qos1 external-ids:a=b -- --id=@qos1 create qos type=linux-htb", "does not limit rates"),
        ("set Interface p mtu_request=9000", "does not contain a column"),
        ("set Bridge b stp_enable=true", "cannot be set"),
        ("set Open_vSwitch . a=b", "unknown table"),
        ("--format=table list Port", "--format=list"),
        ("add-port b p", "already exists on bridge b"),
        ("del-port b", "local port"),
    ] {
        let error = session(&mut model, &[line]).remove(0).expect_err(line);
        assert!(error.contains(part), "{line}: {error}");
        assert_eq!((&model.domains, &model.ports), (&before.0, &before.1), "{line}");
    }
}
