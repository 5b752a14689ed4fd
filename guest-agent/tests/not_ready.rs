//! What an agent does whose machine does not take its identity.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Fixture, identity, said_ready};
use patina_abi::link::{FromAgent, FromHost};

/// What the [`Fixture`]'s machine refuses from now on: `vital` or `slight` steps, one a line.
fn refuse(fixture: &Fixture, steps: &str) {
    std::fs::write(fixture.path("refused"), steps).unwrap();
}

#[test]
fn a_clone_that_is_not_itself_is_not_ready_and_nobody_goes_on() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(3);
    let mut program = fixture.program();
    program.send("{\"verb\":\"clone\",\"args\":{\"count\":1}}\n");
    host.clone_request();
    refuse(&fixture, "slight\nvital");
    drop(host);
    let mut host = fixture.accept();
    host.say(&FromHost::Identity(identity(12)));
    assert_eq!(host.next(), FromAgent::NotReady { reason: "identity: set it: vital".into() });
    let text = std::fs::read_to_string(fixture.path("identity")).unwrap();
    assert!(text.starts_with("vmid=3\n"), "nobody takes it for the clone: {text}");
    assert_eq!(fixture.log(), ["hold", "apply 12"], "held still");
    let said = fixture.said.lock().unwrap().clone();
    assert!(
        said.ends_with(&["identity: set it: vital".into(), "identity: set it: slight".into()]),
        "{said:?}"
    );
    // A host that tries again finds a clone still.
    refuse(&fixture, "slight");
    host.say(&FromHost::Identity(identity(12)));
    assert_eq!(host.next(), said_ready(12));
    assert!(program.line().contains("\"vmid\":12"));
    assert_eq!(fixture.log(), ["hold", "apply 12", "apply 12", "release"]);
}

#[test]
fn a_machine_that_boots_is_ready_whatever_it_lacks() {
    let fixture = Fixture::new();
    refuse(&fixture, "vital\nslight");
    let mut host = fixture.ready(0);
    host.say(&FromHost::Identity(identity(0)));
    assert_eq!(host.next(), said_ready(0));
    let said = fixture.said.lock().unwrap().clone();
    assert!(said.contains(&"identity: set it: vital".into()), "{said:?}");
}
