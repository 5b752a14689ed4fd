//! The walks of README.md: their commands work as written, and print the output that it shows.

use crate::{
    Outcome, Story,
    family::require,
    stage::{Stage, free_port},
};
use libtest_mimic::Failed;
use patina_tests::{host::tail, process};
use std::{env, fs, path::Path, process::Command, time::Duration};

pub const STORIES: &[Story] =
    stories![the_first_walk_of_the_readme_works_as_written, the_readme_goes_from_nothing_to_three_hosts,];

/// Stands before a block of commands of the first walk.
const MARK: &str = "<!-- walk";
/// Stands before a block of commands that make three hosts.
const HOSTS_MARK: &str = "<!-- hosts";
/// Stands between what two commands print, before the number of the first one.
const BETWEEN: &str = "@@ printed by step";
/// The port that the walk publishes: another one is taken here, in case somebody has it.
const PORT: &str = "8080";
/// How much of a daemon's log is shown when the walk fails.
const LOG_LINES: usize = 30;
const DEADLINE: Duration = Duration::from_secs(300);

/// A command of the walk, and what the page says that it prints.
struct Step {
    command: String,
    shown: Vec<String>,
}

/// The commands of all blocks with a mark, in order.
fn steps(mark: &str) -> Result<Vec<Step>, Failed> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"))?;
    let blocks = page.split(mark).skip(1).filter_map(|rest| rest.split("```").nth(1));
    let lines = blocks.flat_map(|block| block.lines().skip(1));
    let mut steps: Vec<Step> = Vec::new();
    for line in lines {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push(Step { command: command.to_owned(), shown: Vec::new() }),
            (None, Some(step)) => step.shown.push(line.to_owned()),
            (None, None) => {}
        }
    }
    require(steps.len() > 10, "more than 10 commands", steps.len())?;
    Ok(steps)
}

/// A line without what differs from one machine and run to the next: words with digits, and units
/// of time.
fn form(line: &str) -> Vec<&str> {
    let differs =
        |word: &&str| word.contains(|c: char| c.is_ascii_digit()) || ["us", "ms", "s"].contains(word);
    line.split_whitespace().map(|word| if differs(&word) { "#" } else { word }).collect()
}

/// Whether a line of the output is as one on the page. What `doctor` finds depends on the host.
fn is_shown(step: &Step, shown: &str, printed: &str) -> bool {
    let (shown, printed) = (form(shown), form(printed));
    match step.command.contains("doctor") {
        true => shown.iter().take(2).eq(printed.iter().take(2)),
        false => shown == printed,
    }
}

/// What a command prints has each line that the page shows.
fn prints(step: &Step, text: &str) -> Outcome {
    let missing = step.shown.iter().find(|shown| !text.lines().any(|line| is_shown(step, shown, line)));
    let expected = format!("$ {} prints {:?}", step.command, missing.map_or("", |line| line));
    require(missing.is_none(), expected, text)
}

fn the_first_walk_of_the_readme_works_as_written(stage: &Stage) -> Outcome {
    let steps = steps(MARK)?;
    let host = stage.host()?;
    let port = free_port()?.to_string();
    let path = format!("{}:{}", stage.setup().bin_dir.display(), env::var("PATH")?);
    let told = steps.iter().try_for_each(|step| {
        let mut command = Command::new("sh");
        command.args(["-c", &step.command.replace(PORT, &port)]);
        command.env("PATINA_HOST", host.address()).env("PATH", &path);
        let output = process::run(&mut command, b"", DEADLINE)?;
        require(output.code == 0, format!("$ {} succeeds", step.command), format!("{output:?}"))?;
        prints(step, &output.text())
    });
    // Whatever went wrong: nothing stays.
    let left = host.json(&["ls"])?;
    let left = left.as_array().ok_or("no list")?.iter().filter_map(|vm| vm["name"].as_str());
    let left: Vec<&str> = left.filter(|name| name.split('.').next() == Some("web")).collect();
    if !left.is_empty() {
        host.call(&[&["rm", "-f"], &left[..]].concat())?;
    }
    told?;
    require(left.is_empty(), "the walk leaves no VM", format!("{left:?}"))
}

/// One shell runs all commands, as a reader's does. Its networks, names and processes are its own:
/// nothing of them is left when it ends.
fn the_readme_goes_from_nothing_to_three_hosts(stage: &Stage) -> Outcome {
    let steps = steps(HOSTS_MARK)?;
    let dir = tempfile::tempdir()?;
    let own_names = "mkdir -p /run/netns && mount -t tmpfs netns /run/netns && ip link set lo up".to_owned();
    let numbered = steps.iter().enumerate();
    let commands = numbered.map(|(number, step)| format!("{}\necho \"{BETWEEN} $? {number}\"", step.command));
    let script = std::iter::once(own_names).chain(commands).collect::<Vec<_>>().join("\n");
    let setup = stage.setup();
    let mut command = Command::new("unshare");
    command.args([
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "bash",
        "-c",
        &script,
    ]);
    command.current_dir(dir.path());
    command.env("PATH", format!("{}:{}", setup.bin_dir.display(), env::var("PATH")?));
    command.env("PATINA_KERNEL", &setup.kernel).env("PATINA_ROOTFS", &setup.rootfs);
    if let Some(cache) = &setup.image_cache {
        command.env("PATINA_VMMD_IMAGE_CACHE", cache);
    }
    let output = process::run(&mut command, b"", DEADLINE)?;
    let logs = ["s", "h1", "h2", "h3"].map(|name| {
        let log = fs::read_to_string(dir.path().join(format!("{name}.log")));
        tail(&log.unwrap_or_else(|error| error.to_string()), LOG_LINES)
    });
    let told = || -> Outcome {
        let text = output.text();
        let mut rest = text.as_str();
        for (number, step) in steps.iter().enumerate() {
            let end = format!("{BETWEEN} 0 {number}");
            let Some((printed, after)) = rest.split_once(&end) else {
                let expected = format!("$ {} succeeds", step.command);
                return require(false, expected, format!("{rest}{}", output.errors()));
            };
            prints(step, printed)?;
            rest = after;
        }
        Ok(())
    };
    told()
        .map_err(|failed| format!("{}\n{}", failed.message().unwrap_or("failed"), logs.join("\n==\n")).into())
}
