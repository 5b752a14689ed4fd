//! The first walk of README.md: its commands work as written, and print the output that it shows.

use crate::{
    Outcome, Story,
    family::require,
    stage::{Stage, free_port},
};
use patina_tests::process;
use std::{env, fs, path::Path, process::Command, time::Duration};

pub const STORIES: &[Story] = stories![the_first_walk_of_the_readme_works_as_written,];

/// Stands before a block of commands that are run.
const MARK: &str = "<!-- walk";
/// The port that the walk publishes: another one is taken here, in case somebody has it.
const PORT: &str = "8080";
const DEADLINE: Duration = Duration::from_secs(300);

/// A command of the walk, and what the page says that it prints.
struct Step {
    command: String,
    shown: Vec<String>,
}

/// The commands of all marked blocks, in order.
fn steps(page: &str) -> Vec<Step> {
    let blocks = page.split(MARK).skip(1).filter_map(|rest| rest.split("```").nth(1));
    let lines = blocks.flat_map(|block| block.lines().skip(1));
    let mut steps: Vec<Step> = Vec::new();
    for line in lines {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push(Step { command: command.to_owned(), shown: Vec::new() }),
            (None, Some(step)) => step.shown.push(line.to_owned()),
            (None, None) => {}
        }
    }
    steps
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

fn the_first_walk_of_the_readme_works_as_written(stage: &Stage) -> Outcome {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md"))?;
    let steps = steps(&page);
    require(steps.len() > 10, "more than 10 commands", steps.len())?;
    let host = stage.host()?;
    let port = free_port()?.to_string();
    let path = format!("{}:{}", stage.setup().bin_dir.display(), env::var("PATH")?);
    let told = steps.iter().try_for_each(|step| {
        let mut command = Command::new("sh");
        command.args(["-c", &step.command.replace(PORT, &port)]);
        command.env("PATINA_HOST", host.address()).env("PATH", &path);
        let output = process::run(&mut command, b"", DEADLINE)?;
        require(output.code == 0, format!("$ {} succeeds", step.command), format!("{output:?}"))?;
        let text = output.text();
        let missing = step.shown.iter().find(|shown| !text.lines().any(|line| is_shown(step, shown, line)));
        require(
            missing.is_none(),
            format!("$ {} prints {:?}", step.command, missing.map_or("", |line| line)),
            text,
        )
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
