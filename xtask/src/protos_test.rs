use super::*;
use std::env;

/// A git command in `root` that asks nothing of this machine's settings.
fn plain_git(root: &Path, arguments: &[&str]) -> String {
    let mut command = git(root);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    command.args(["-c", "user.name=a", "-c", "user.email=a@b"]).args(arguments);
    let output = command.output().expect("git");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A repository with a commit for each list of files.
fn repository(commits: &[&[(&str, &str)]]) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a folder");
    plain_git(root.path(), &["init", "--quiet"]);
    fs::create_dir_all(root.path().join("proto/patina")).expect("a folder");
    for files in commits {
        for (path, content) in *files {
            fs::write(root.path().join(path), content).expect("a file");
        }
        plain_git(root.path(), &["add", "--all"]);
        plain_git(root.path(), &["commit", "--quiet", "--message", "x"]);
    }
    root
}

/// Three commits: the second may break clients.
fn with_a_break() -> tempfile::TempDir {
    repository(&[
        &[("buf.yaml", "v"), ("proto/patina/a.proto", "first"), (BREAKING, "none")],
        &[("proto/patina/a.proto", "broken"), (BREAKING, "one")],
        &[("proto/patina/a.proto", "more")],
    ])
}

fn proto_of(earlier: &Earlier) -> String {
    fs::read_to_string(earlier.folder.path().join("proto/patina/a.proto")).expect("a file")
}

#[test]
fn protos_are_compared_with_those_of_the_last_commit_that_may_break_clients() {
    let root = with_a_break();
    let earlier = earlier(root.path()).expect("there is a commit");
    assert_eq!((proto_of(&earlier).as_str(), earlier.changed), ("broken", false));
    assert!(earlier.folder.path().join("buf.yaml").is_file() && earlier.commit.len() >= 7, "{earlier:?}");
}

#[test]
fn protos_are_compared_while_the_list_of_breaks_is_being_changed() {
    let root = with_a_break();
    fs::write(root.path().join(BREAKING), "two").expect("a file");
    let earlier = earlier(root.path()).expect("there is a commit");
    assert_eq!((proto_of(&earlier).as_str(), earlier.changed), ("broken", true));
}

#[test]
fn breaks_are_refused_unless_the_list_of_breaks_is_being_changed() {
    let ends = |code: i32, changed| {
        let folder = tempfile::tempdir().expect("a folder");
        let earlier = Earlier { folder, commit: "abc".to_owned(), changed };
        let mut buf = Command::new("sh");
        compare(&Steps::new(), &earlier, buf.args(["-c", &format!("exit {code}")]))
    };
    assert!(ends(0, false).is_ok() && ends(0, true).is_ok());
    assert!(ends(FOUND, false).is_err(), "clients would break");
    assert!(ends(FOUND, true).is_ok(), "clients are to break");
    assert!(ends(1, true).is_err(), "buf itself failed");
}

#[test]
fn protos_without_a_history_are_compared_with_nothing_and_the_reason_is_told() {
    let nowhere = tempfile::tempdir().expect("a folder");
    assert!(earlier(nowhere.path()).is_err(), "no repository");
    let root = repository(&[&[("buf.yaml", "v")]]);
    let error = earlier(root.path()).expect_err("no commit has the list");
    assert!(error.to_string().contains(BREAKING), "{error}");
}

#[test]
fn protos_of_a_shallow_clone_are_not_compared_with_themselves() {
    let root = with_a_break();
    let url = format!("file://{}", root.path().display());
    let clones = tempfile::tempdir().expect("a folder");
    let shallow = |depth: &str| {
        plain_git(clones.path(), &["clone", "--quiet", "--depth", depth, &url, depth]);
        earlier(&clones.path().join(depth))
    };
    for depth in ["1", "2"] {
        let error = shallow(depth).expect_err("the commit may be there by its depth only");
        assert!(error.to_string().starts_with("shallow clone, "), "{error}");
    }
    // A clone that has the last change of the list and the commit before it is deep enough.
    plain_git(root.path(), &["commit", "--quiet", "--allow-empty", "--message", "x"]);
    fs::write(root.path().join(BREAKING), "two").expect("a file");
    plain_git(root.path(), &["commit", "--quiet", "--all", "--message", "x"]);
    let earlier = shallow("3").expect("the commit and its parent are there");
    assert_eq!(proto_of(&earlier), "more");
}

/// This process's environment cannot be changed while tests run, so they run in a process of their
/// own.
#[test]
fn the_repository_that_a_hook_names_is_left_alone() {
    let root = repository(&[&[("buf.yaml", "v")]]);
    let state = || {
        let seen = ["log --format=%H", "status --porcelain", "ls-files --stage"];
        seen.map(|arguments| plain_git(root.path(), &arguments.split(' ').collect::<Vec<_>>()))
    };
    let before = state();
    let at = root.path().join(".git");
    let output = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", "--test-threads=1"])
        .args([
            "protos::tests::protos_are_compared_with_those_of_the_last_commit_that_may_break_clients",
            "protos::tests::protos_without_a_history_are_compared_with_nothing_and_the_reason_is_told",
        ])
        .envs([("GIT_DIR", &at), ("GIT_COMMON_DIR", &at), ("GIT_INDEX_FILE", &at.join("index"))])
        .envs([("GIT_WORK_TREE", root.path()), ("GIT_OBJECT_DIRECTORY", &at.join("objects"))])
        .output()
        .expect("the tests run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(state(), before, "{text}");
    assert!(output.status.success() && text.contains("2 passed"), "{text}");
}

/// Stands for npm: `script` does what `npm install` does, in the folder that it is told.
fn npm(script: &str) -> impl Fn() -> Command {
    let before = "[ $1 = install ] || exit 0; while [ $1 != --prefix ]; do shift; done; cd \"$2\"";
    let script = format!("{before}; {script}");
    move || {
        let mut command = Command::new("sh");
        command.args(["-c", &script, "npm"]);
        command
    }
}

/// A script that installs a program.
fn installs(path: &str) -> String {
    let path = format!("node_modules/{PACKAGE}/{path}");
    format!("mkdir -p $(dirname {path}); echo new >{path}")
}

#[test]
fn buf_is_kept_whole_and_what_killed_runs_left_is_removed() {
    let tools = tempfile::tempdir().expect("a folder");
    // No process has this number: it is beyond the largest that Linux gives.
    let (left, broken) = (format!("{VERSION}.4194305"), tools.path().join(VERSION).join("node_modules"));
    // Process 1 still runs.
    let (running, other) = (format!("{VERSION}.1"), "1.0.0");
    for name in [&left, &running, other] {
        fs::create_dir_all(tools.path().join(name).join("node_modules")).expect("a folder");
    }
    fs::create_dir_all(broken).expect("a folder");
    let buf = install(&Steps::new(), tools.path(), &npm(&installs("bin/buf"))).expect("it is installed");
    assert_eq!(fs::read_to_string(&buf).expect("a program"), "new\n");
    let mut names: Vec<_> = fs::read_dir(tools.path())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    assert_eq!(names, [other, VERSION, &running]);
    let again = install(&Steps::new(), tools.path(), &npm("exit 1")).expect("it is there");
    assert_eq!(again, buf);
}

#[test]
fn a_package_without_the_program_is_a_reason_to_skip_and_nothing_is_kept() {
    let tools = tempfile::tempdir().expect("a folder");
    let error = install(&Steps::new(), tools.path(), &npm(&installs("buf"))).expect_err("another layout");
    assert!(error.to_string().ends_with("bin/buf"), "{error}");
    assert_eq!(fs::read_dir(tools.path()).expect("a folder").count(), 0);
}

#[test]
fn nothing_is_installed_where_the_registry_does_not_answer() {
    let tools = tempfile::tempdir().expect("a folder");
    let unreachable = || {
        let mut command = Command::new("sh");
        command.args(["-c", "[ $1 = view ] && exit 7; touch \"$0\"", "npm"]);
        command.current_dir(tools.path());
        command
    };
    let error = install(&Steps::new(), tools.path(), &unreachable).expect_err("no registry");
    assert!(on_one_line(&error).contains("exit status: 7"), "{error}");
    assert_eq!(fs::read_dir(tools.path()).expect("a folder").count(), 0);
}
