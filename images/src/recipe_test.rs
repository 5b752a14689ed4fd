use super::*;

fn written(text: &str) -> Result<Recipe, RecipeError> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mine.toml");
    fs::write(&file, text).unwrap();
    Recipe::load(file.to_str().unwrap())
}

#[test]
fn every_builtin_recipe_loads() {
    for name in Recipe::builtin_names() {
        let recipe = Recipe::load(name).unwrap();
        assert_eq!(recipe.name, name);
        assert!(!recipe.description.is_empty());
        assert!(recipe.packages.iter().any(|package| package == "busybox-static"), "{name}");
        assert!(recipe.binaries.iter().any(|binary| binary.name == "gc-init"), "{name}");
    }
}

#[test]
fn an_include_brings_everything_and_order_changes_nothing() {
    let one =
        written("include = ['default']\npackages = ['strace', 'bash']\nremove = ['/usr/share/x']").unwrap();
    let two =
        written("include = ['default']\npackages = ['bash', 'strace', 'bash']\nremove = ['/usr/share/x']")
            .unwrap();
    assert_eq!(one, two);
    let default = Recipe::load("default").unwrap();
    assert_eq!(one.packages.len(), default.packages.len() + 2);
    assert_eq!(one.binaries, default.binaries);
    assert_eq!(one.name, "mine");
}

#[test]
fn a_recipe_includes_the_file_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    file("base.toml", "packages = ['bash']");
    file("mine.toml", "include = ['base.toml']\npackages = ['strace']");
    let recipe = Recipe::load(directory.path().join("mine.toml").to_str().unwrap()).unwrap();
    assert_eq!(recipe.packages, ["bash", "strace"]);
}

#[test]
fn a_circle_of_includes_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mine.toml");
    fs::write(&file, "include = ['mine.toml']").unwrap();
    let error = Recipe::load(file.to_str().unwrap()).unwrap_err();
    assert!(matches!(error, RecipeError::TooDeep { .. }));
}

#[test]
fn hostile_values_are_refused_by_name() {
    for text in [
        "packages = ['-oAPT::Update::Pre-Invoke=evil']",
        "packages = ['bash-']",
        "packages = ['*']",
        "packages = ['../x']",
        "exclude_packages = ['Bash']",
        "remove = ['/']",
        "remove = ['/usr/../../etc']",
        "remove = ['usr']",
        "[[binary]]\nname = '../../etc/shadow'\npath = '/x'",
        "[[binary]]\nname = 'gc'\npath = '../x'",
        "[[file]]\npath = 'etc/x'\ncontent = ''",
        "[[symlink]]\npath = '/../x'\ntarget = 'y'",
    ] {
        let error = written(text).unwrap_err();
        assert!(matches!(error, RecipeError::Invalid { .. }), "{text}: {error}");
    }
}

#[test]
fn mistakes_are_told() {
    let error = Recipe::load("no-such-recipe").unwrap_err();
    assert!(error.to_string().contains("default, bench, tools"), "{error}");
    assert!(matches!(written("package = ['bash']").unwrap_err(), RecipeError::Parse { .. }));
    assert!(matches!(written("packages = 'bash'").unwrap_err(), RecipeError::Parse { .. }));
    assert!(matches!(written("[[file]]\npath = '/x'").unwrap_err(), RecipeError::Parse { .. }));
    let many = format!("packages = [{}]", "'bash',".repeat(LIST_MAX + 1));
    let error = written(&many).unwrap_err();
    assert!(matches!(error, RecipeError::TooMany { list: "packages", .. }));
}
