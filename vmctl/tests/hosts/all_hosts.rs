//! `--all-hosts`: the VMs of all hosts, and one that is found wherever it is.

use crate::stand_in::{Cluster, StandIn, id, ran, serve, vm};
use patina_proto::v1::VmState;
use std::{
    process::Stdio,
    sync::{Arc, Mutex},
};

const ADAM: &str = "10000000-0000-4000-8000-000000000001";
const EVE: &str = "20000000-0000-4000-8000-000000000002";

/// Three hosts with two families. Both c and a have a VM `twin`.
async fn three() -> Cluster {
    let mut cluster = Cluster::start();
    cluster.add("c", vec![vm("adam", ADAM, 0), vm("twin", EVE, 1)]).await;
    cluster
        .add("a", vec![vm("adam.2", ADAM, 2), vm("twin", "30000000-0000-4000-8000-000000000003", 0)])
        .await;
    cluster.add("b", vec![vm("adam.1", ADAM, 1), vm("adam.3", ADAM, 3)]).await;
    cluster
}

fn ended(cluster: &Cluster) -> Vec<String> {
    let vms = cluster.hosts.iter().flat_map(|host| host.vms.lock().unwrap().clone());
    let mut ended: Vec<_> = vms.filter(|vm| vm.state() == VmState::Ended).map(|vm| vm.name).collect();
    ended.sort();
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn all_hosts_are_listed_in_one_table() {
    let cluster = three().await;
    let (code, printed, said) = cluster.vmctl("ls --all-hosts").await;
    assert_eq!((code, said.as_str()), (0, ""));
    let columns = printed.lines().map(|line| line.split_whitespace().take(3).collect::<Vec<_>>().join(" "));
    let columns: Vec<_> = columns.collect();
    let wanted = [
        "NAME HOST STATE",
        "adam c ready",
        "adam.1 b ready",
        "adam.2 a ready",
        "adam.3 b ready",
        "twin a ready",
        "twin c ready",
    ];
    assert_eq!(columns, wanted, "{printed}");
    assert!(printed.lines().nth(2).unwrap().starts_with("  adam.1"), "{printed}");
    let (code, printed, _) = cluster.vmctl("-o json ls --all-hosts").await;
    let vms: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let vms = vms.as_array().unwrap().iter().map(|vm| (vm["name"].clone(), vm["host"].clone()));
    assert_eq!((code, vms.clone().count()), (0, 6));
    assert_eq!(vms.clone().nth(1).unwrap(), ("adam.1".into(), "b".into()));
    // Without the flag it is the one host, and no column.
    let (_, printed, _) = cluster.vmctl("ls").await;
    assert!(printed.starts_with("NAME  STATE") && !printed.contains("adam.1"), "{printed}");
    // The scheduler is enough, if it is named.
    let nobody = format!("unix:{}", cluster.path("nobody").display());
    let scheduler = cluster.path("s.sock");
    let words = format!("--scheduler unix:{} ls --all-hosts", scheduler.display());
    let (code, again, said) = ran(cluster.command_at(&nobody, &words)).await;
    assert_eq!((code, again.lines().count()), (0, 7), "{said}");
    // Then a vmmd of another scheduler is not among them.
    let other = StandIn { id: id(7), vms: Mutex::new(vec![vm("other", EVE, 0)]), ..StandIn::default() };
    serve(&cluster.path("other.sock"), Arc::new(other));
    let words = format!("--scheduler unix:{} ls --all-hosts", scheduler.display());
    let (code, again, said) =
        ran(cluster.command_at(&format!("unix:{}", cluster.path("other.sock").display()), &words)).await;
    assert_eq!((code, again.lines().count()), (0, 7), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_found_wherever_it_is() {
    let cluster = three().await;
    let (code, printed, said) = cluster.vmctl("logs --all-hosts adam.1").await;
    assert_eq!((code, printed), (0, format!("adam.1 on {}\n", id(2))), "{said}");
    let mut command = cluster.command("exec --all-hosts adam.2 cat");
    let input = cluster.path("input");
    std::fs::write(&input, "to the guest").unwrap();
    command.stdin(Stdio::from(std::fs::File::open(input).unwrap()));
    assert_eq!(ran(command).await, (7, "to the guest".to_owned(), String::new()));
    let (code, printed, said) = cluster.vmctl("inspect --all-hosts adam.3").await;
    assert!(
        code == 0 && printed.lines().nth(1).unwrap().split_whitespace().eq(["host", "b"]),
        "{printed}{said}"
    );
    let (code, printed, said) = cluster.vmctl("kill --all-hosts adam.1 adam").await;
    assert_eq!((code, printed.as_str(), said.as_str()), (0, "adam.1\nadam\n", ""));
    assert_eq!(ended(&cluster), ["adam", "adam.1"]);
    // Only where it is asked for.
    assert_eq!(cluster.vmctl("kill adam.2").await.0, 3);
    let (code, _, said) = cluster.vmctl("logs --all-hosts nosuch").await;
    assert!(code == 3 && said.contains("none of the hosts has it (a, b, c)"), "{code}: {said}");
    assert_eq!(cluster.vmctl("exec --all-hosts nosuch true").await.0, 125);
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_published_on_the_host_of_the_vm() {
    let cluster = three().await;
    let (code, printed, said) =
        cluster.vmctl("publish --all-hosts adam.1 127.0.0.1:8080:80 [::1]:8081:81").await;
    let rows: Vec<_> = printed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(rows, [["HOST", "GUEST"], ["127.0.0.1:8080", "80"], ["[::1]:8081", "81"]], "{code}: {said}");
    assert_eq!(cluster.hosts[2].vms.lock().unwrap()[0].ports.len(), 2);
    let (code, printed, said) = cluster.vmctl("-o json unpublish --all-hosts adam.1 127.0.0.1:8080").await;
    let vm: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((code, vm["ports"].as_array().unwrap().len()), (0, 1), "{said}");
    assert_eq!(vm["ports"][0]["host_port"], 8081);
    // Only where it is asked for, and of one VM.
    assert_eq!(cluster.vmctl("publish adam.1 8080:80").await.0, 3);
    assert_eq!(cluster.vmctl("publish --all-hosts twin 8080:80").await.0, 5);
    assert_eq!(cluster.vmctl("publish adam").await.0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_on_several_hosts_is_refused_with_their_addresses() {
    let cluster = three().await;
    let (code, _, said) = cluster.vmctl("kill --all-hosts twin").await;
    assert_eq!(code, 5, "{said}");
    for host in [format!("a (--host {})", cluster.address(1)), format!("c (--host {})", cluster.address(0))] {
        assert!(said.contains(&host), "{said}");
    }
    assert!(ended(&cluster).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_family_is_killed_on_all_hosts() {
    let cluster = three().await;
    let (code, printed, said) = cluster.vmctl("kill --all-hosts --family adam.1").await;
    assert_eq!((code, printed.as_str(), said.as_str()), (0, "adam\nadam.1\nadam.2\nadam.3\n", ""));
    assert_eq!(ended(&cluster), ["adam", "adam.1", "adam.2", "adam.3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_family_and_all_that_has_ended_are_removed_on_all_hosts() {
    let cluster = three().await;
    let left = || {
        let vms = cluster.hosts.iter().flat_map(|host| host.vms.lock().unwrap().clone());
        let mut left: Vec<_> = vms.map(|vm| vm.name).collect();
        left.sort();
        left
    };
    // Here is one host of three.
    let (code, printed, said) = cluster.vmctl("rm --force --family adam").await;
    assert_eq!((code, printed.as_str(), said.as_str()), (0, "adam\n", ""));
    let (code, printed, said) = cluster.vmctl("rm --force --all-hosts --family adam.1").await;
    assert_eq!((code, printed.as_str(), said.as_str()), (0, "adam.1\nadam.2\nadam.3\n", ""));
    assert_eq!(left(), ["twin", "twin"]);
    assert_eq!(cluster.vmctl("rm --all-hosts --ended").await, (0, String::new(), String::new()));
    for host in &cluster.hosts {
        host.vms.lock().unwrap().iter_mut().for_each(|vm| vm.set_state(VmState::Ended));
    }
    // Two families have a VM of that name.
    let (code, printed, said) = cluster.vmctl("rm --all-hosts --ended").await;
    assert_eq!((code, printed.as_str(), said.as_str()), (0, "twin\n", ""));
    assert_eq!(left(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_do_not_answer_are_named_and_the_others_are_asked() {
    let mut cluster = three().await;
    let nobody = format!("unix:{}", cluster.path("nobody").display());
    let silent = id(8);
    cluster.register("silent", &silent, &nobody).await;
    // On this machine the socket is that of another host.
    let other = cluster.address(1);
    cluster.register("taken", &id(9), &other).await;
    let (code, printed, said) = cluster.vmctl("ls --all-hosts").await;
    assert_eq!((code, printed.lines().count()), (6, 7), "{said}");
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].contains("host silent at unix:") && lines[0].contains("No such file"), "{said}");
    assert!(lines[1].contains("host taken at unix:") && lines[1].contains(&id(1)), "{said}");
    assert!(lines[2].contains("not complete: 2 of 5 hosts"), "{said}");
    // It is clear which VM is looked at; a change waits until it is.
    assert_eq!(cluster.vmctl("logs --all-hosts adam.1").await.1, format!("adam.1 on {}\n", id(2)));
    let (code, _, said) = cluster.vmctl("kill --all-hosts adam.1").await;
    assert!(code == 6 && said.contains(&format!("--host {}", cluster.address(2))), "{code}: {said}");
    assert!(ended(&cluster).is_empty());
    let (code, _, said) = cluster.vmctl("logs --all-hosts nosuch").await;
    assert!(code == 6 && said.contains("did not answer: silent, taken"), "{code}: {said}");
    let (code, _, said) = cluster.vmctl("kill --all-hosts --family adam").await;
    assert!(code == 6 && ended(&cluster).is_empty(), "{code}: {said}");
    let (code, _, said) = cluster.vmctl(&format!("kill --all-hosts --family {ADAM}")).await;
    assert!(code == 6 && said.contains("not complete"), "{code}: {said}");
    assert_eq!(ended(&cluster).len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_host_has_keeps_nobody_from_a_change() {
    let mut cluster = three().await;
    let nobody = format!("unix:{}", cluster.path("nobody").display());
    cluster.register("silent", &id(8), &nobody).await;
    assert_eq!(cluster.vmctl("kill --all-hosts adam.1").await.0, 6);
    cluster.leave().await;
    let mut fenced = cluster.vmctl("host fence silent").await;
    while fenced.2.contains("is up") {
        // The scheduler has not seen yet that it has left.
        fenced = cluster.vmctl("host fence silent").await;
    }
    assert_eq!(fenced.0, 0, "{}", fenced.2);
    let (code, printed, said) = cluster.vmctl("kill --all-hosts adam.1").await;
    assert_eq!((code, printed.as_str()), (0, "adam.1\n"), "{said}");
    assert!(said.contains("host silent at"), "{said}");
}
