use super::*;
use std::os::unix::fs::PermissionsExt as _;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn made(place: &Path) -> Authority {
    Authority::create(&place.join("pki"), Validity::days(10)).unwrap()
}

#[test]
fn keys_are_their_owners_alone_and_nothing_is_written_over() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("new/pki");
    let authority = Authority::create(&folder, Validity::days(10)).unwrap();
    assert_eq!((mode(&folder), mode(&folder.join("ca-key.pem"))), (0o700, 0o600));
    let key = fs::read(folder.join("ca-key.pem")).unwrap();
    let again = Authority::create(&folder, Validity::days(10)).unwrap_err();
    assert!(matches!(again, PkiError::Exists(_)), "{again:?}");
    let host = authority.host(&name("a"), None, &[], Validity::days(1), false).unwrap();
    assert_eq!((mode(&host.folder), mode(&host.folder.join(KEY))), (0o700, 0o600));
    let cert = fs::read(host.folder.join(CERTIFICATE)).unwrap();
    let again = authority.host(&name("a"), None, &[], Validity::days(1), false).unwrap_err();
    assert!(matches!(again, PkiError::Exists(_)), "{again:?}");
    let operator = authority.operator(&name("a"), Role::Use, Validity::days(1), false).unwrap();
    assert_eq!(mode(&operator.folder.join(KEY)), 0o600);
    assert_eq!(fs::read(folder.join("ca-key.pem")).unwrap(), key);
    assert_eq!(fs::read(host.folder.join(CERTIFICATE)).unwrap(), cert);
    // Nothing else is left, however it ended.
    let mut left: Vec<_> =
        fs::read_dir(folder.join("hosts")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["a"]);
}

#[test]
fn a_certificate_says_who_it_is_for_and_a_renewed_one_says_the_same() {
    let place = tempfile::tempdir().unwrap();
    let authority = made(place.path());
    let addresses = ["10.0.0.1".parse().unwrap(), "h.lan".parse().unwrap()];
    let host = authority.host(&name("h"), None, &addresses, Validity::days(1), false).unwrap();
    let first = Tls::open(&host.folder).unwrap();
    assert_eq!(first.identity(), host.identity);
    let before = fs::read_to_string(host.folder.join(CERTIFICATE)).unwrap();
    let renewed = authority.host(&name("h"), None, &[], Validity::days(2), true).unwrap();
    assert_eq!(renewed, host);
    assert_ne!(fs::read_to_string(host.folder.join(CERTIFICATE)).unwrap(), before);
    assert_eq!(fs::read_to_string(host.folder.join("addresses")).unwrap(), "10.0.0.1\nh.lan\n");
    let id = Uuid::from_u128(9);
    let given = authority.host(&name("i"), Some(id), &[], Validity::days(1), false).unwrap();
    assert_eq!(Tls::open(&given.folder).unwrap().host_id().unwrap(), id);
    for role in Role::ALL {
        let operator = authority.operator(&name(role.name()), role, Validity::days(1), false).unwrap();
        let wanted = Identity::Operator { name: role.name().to_owned(), role };
        assert_eq!(Tls::open(&operator.folder).unwrap().identity(), wanted);
        assert!(Tls::open(&operator.folder).unwrap().host_id().is_err());
    }
    let missing = authority.host(&name("x"), None, &[], Validity::days(1), true).unwrap_err();
    assert!(matches!(missing, PkiError::NotThere { .. }), "{missing:?}");
}

#[test]
fn a_folder_whose_parts_do_not_belong_together_is_refused_in_words() {
    let place = tempfile::tempdir().unwrap();
    let authority = made(place.path());
    let other = Authority::create(&place.path().join("other"), Validity::days(10)).unwrap();
    let mine = authority.operator(&name("a"), Role::Use, Validity::days(1), false).unwrap().folder;
    let theirs = other.operator(&name("a"), Role::Use, Validity::days(1), false).unwrap().folder;
    let refused = |folder: &Path| Tls::open(folder).unwrap_err().to_string();
    let with = |file: &str, of: &Path| {
        let kept = fs::read(mine.join(file)).unwrap();
        fs::copy(of.join(file), mine.join(file)).unwrap();
        let said = refused(&mine);
        fs::write(mine.join(file), kept).unwrap();
        said
    };
    assert!(with(AUTHORITY, &theirs).contains("is of another authority"));
    assert!(with(KEY, &theirs).contains("is not of the private key"));
    fs::set_permissions(mine.join(KEY), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refused(&mine).contains("every user can read this private key"));
    fs::set_permissions(mine.join(KEY), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(Tls::open(&mine).is_ok());
    fs::write(mine.join(CERTIFICATE), "hello\n").unwrap();
    assert!(refused(&mine).contains("in PEM"));
    fs::remove_file(mine.join(CERTIFICATE)).unwrap();
    assert!(refused(&mine).contains("vmctl pki"));
    let day = Duration::from_secs(86_400);
    let now = SystemTime::now();
    let past = Validity { from: now - 2 * day, to: now - day };
    let old = authority.operator(&name("old"), Role::Use, past, false).unwrap();
    assert!(refused(&old.folder).contains("has expired"), "{}", refused(&old.folder));
    let future = Validity { from: now + day, to: now + 2 * day };
    let new = authority.operator(&name("new"), Role::Use, future, false).unwrap();
    assert!(refused(&new.folder).contains("is not valid yet"));
    // A key that is not the authority's signs nothing that is handed out.
    fs::copy(place.path().join("other/ca-key.pem"), place.path().join("pki/ca-key.pem")).unwrap();
    let wrong = authority.operator(&name("w"), Role::Use, Validity::days(1), false).unwrap_err();
    assert!(matches!(wrong, PkiError::Check(_)) && !place.path().join("pki/operators/w").exists());
}
