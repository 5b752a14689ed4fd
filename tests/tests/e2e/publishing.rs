//! Ports that are published, and not any longer, while VMs run.

use crate::{
    Outcome, Story,
    family::{require, require_eq},
    network::serve,
    stage::{Stage, free_port},
};
use libtest_mimic::Failed;
use patina_tests::host::Host;
use std::{
    io::{ErrorKind, Read as _},
    net::TcpStream,
    time::Duration,
};

pub const STORIES: &[Story] = stories![ports_of_a_vm_and_of_its_clone_are_published_and_closed_as_they_run,];

/// What answers at a port of the host. None: nobody listens.
fn answer(port: u16) -> Result<Option<String>, Failed> {
    let mut stream = match TcpStream::connect(("127.0.0.1", port)) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(None),
        other => other?,
    };
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(Some(answer))
}

fn ports_of_a_vm_and_of_its_clone_are_published_and_closed_as_they_run(stage: &Stage) -> Outcome {
    let mut host = Host::start(stage.setup())?;
    let told = change(&mut host);
    let log = host.vmmd_log();
    host.stop()?;
    told.map_err(|failed| format!("{}\n{log}", failed.message().unwrap_or("failed")).into())
}

fn change(host: &mut Host) -> Outcome {
    let web = host.run("web", &[])?;
    web.sh("echo -n web > /tmp/own")?;
    serve(&web, 7000, "cat /tmp/own")?;
    host.call(&["clone", "web"])?;
    let clone = host.vm("web.1");
    clone.wait_ready()?;
    clone.sh("echo -n clone > /tmp/own")?;

    let (first, second, third) = (free_port()?, free_port()?, free_port()?);
    let at = |port: u16| format!("{port}:7000");
    host.call(&["publish", "web", &at(first)])?;
    let printed = host.call(&["publish", "web.1", &at(second), &at(third)])?;
    let named = [second, third].map(|port| printed.contains(&format!("127.0.0.1:{port}")));
    require(named == [true, true], "the clone's ports", &printed)?;
    let all = |wanted: [Option<&str>; 3]| -> Outcome {
        for (port, wanted) in [first, second, third].into_iter().zip(wanted) {
            require_eq("what answers", answer(port)?.as_deref(), wanted)?;
        }
        Ok(())
    };
    all([Some("web"), Some("clone"), Some("clone")])?;

    // All or none: one of them is taken.
    let free = free_port()?;
    let taken = host.vmctl(&["publish", "web", &at(free), &at(second)])?;
    require_eq("the exit code for a port in use", taken.code, 4)?;
    require_eq("what answers at the other port", answer(free)?, None)?;

    // They stay as they are when another vmmd takes the VMs over.
    host.kill_vmmd()?;
    require_eq("what answers without vmmd", answer(first)?, None)?;
    host.start_vmmd()?;
    host.vm("web.1").inspect()?;
    all([Some("web"), Some("clone"), Some("clone")])?;

    let unknown = host.vmctl(&["unpublish", "web.1", &second.to_string(), &first.to_string()])?;
    require_eq("the exit code for a port of another VM", unknown.code, 3)?;
    all([Some("web"), Some("clone"), Some("clone")])?;
    host.call(&["unpublish", "web.1", &second.to_string()])?;
    all([Some("web"), None, Some("clone")])?;

    host.vm("web.1").kill()?;
    all([Some("web"), None, None])?;
    let ended = host.vmctl(&["publish", "web.1", &at(second)])?;
    require_eq("the exit code for a VM that has ended", ended.code, 5)?;
    all([Some("web"), None, None])
}
