use super::*;
use crate::apt::parse_madison;

/// As `apt-cache madison` of Debian 12 printed it.
const MADISON: &str = "\
linux-image-6.1.0-9-cloud-amd64 | 6.1.27-1 | http://mirror.example/debian bookworm/main amd64 Packages
linux-image-6.1.0-56-cloud-amd64 |  6.1.192-2 | http://mirror.example/debian-security bookworm-security/main amd64 Packages
linux-image-6.1.0-50-cloud-amd64 |  6.1.176-1 | http://mirror.example/debian bookworm/main amd64 Packages
linux-image-6.1.0-57-rt-amd64 |  6.1.193-1 | http://mirror.example/debian bookworm/main amd64 Packages
linux-image-6.12.9+deb12-cloud-amd64 | 6.12.9-1~deb12u1 | http://mirror.example/debian bookworm/main amd64 Packages
linux-image-6.12.117+deb12-cloud-amd64 | 6.12.117-1~deb12u1 | http://mirror.example/debian bookworm/main amd64 Packages
linux-image-6.12.117+deb12-cloud-amd64-unsigned | 6.12.118-1~deb12u1 | http://mirror.example/debian bookworm/main amd64 Packages
";

#[test]
fn the_newest_kernel_of_a_series_is_chosen_by_its_numbers() {
    let chosen =
        |series| choose(parse_madison(MADISON), series).map(|package| (package.name, package.version));
    let named = |name: &str, version: &str| Some((name.to_owned(), version.to_owned()));
    assert_eq!(chosen("6.1"), named("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"));
    assert_eq!(chosen("6.12"), named("linux-image-6.12.117+deb12-cloud-amd64", "6.12.117-1~deb12u1"));
}

#[test]
fn a_series_that_the_lists_lack_has_no_kernel() {
    assert_eq!(choose(parse_madison(MADISON), "6.13"), None);
    assert_eq!(choose(parse_madison(""), "6.1"), None);
    assert_eq!(choose(parse_madison("linux-image-6.1.0-9-cloud-amd64"), "6.1"), None);
}

const DEP: &str = "\
kernel/virt/lib/irqbypass.ko.xz:
kernel/arch/x86/kvm/kvm.ko.xz: kernel/virt/lib/irqbypass.ko.xz
kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/arch/x86/kvm/kvm.ko.xz kernel/virt/lib/irqbypass.ko.xz
kernel/net/bridge/bridge.ko.xz: kernel/net/802/stp.ko.xz kernel/net/llc/llc.ko.xz
kernel/drivers/net/tun.ko.xz:
";

#[test]
fn modules_are_loaded_behind_what_they_need_and_once() {
    let order = load_order(DEP, "kernel/fs/ext4/ext4.ko\n", &["kvm", "kvm_amd", "ext4", "bridge"]).unwrap();
    let names: Vec<String> = order.iter().map(|path| module_name(path)).collect();
    assert_eq!(names, ["irqbypass", "kvm", "kvm_amd", "llc", "stp", "bridge"]);
}

#[test]
fn a_module_that_the_package_lacks_is_named() {
    let error = load_order(DEP, "", &["ext4"]).unwrap_err();
    assert_eq!(error.to_string(), "unpack a Debian kernel: the package has no module ext4");
}

#[test]
fn a_products_version_is_read_from_its_folder() {
    let cache = tempfile::tempdir().unwrap();
    let product = cache.path().join("0123abcd-6.12.117_1~deb12u1");
    files::write(&product.join("modules/00-irqbypass.ko"), b"", 0o644).unwrap();
    files::write(&product.join("modules/01-kvm.ko"), b"", 0o644).unwrap();
    let kernel = read_product(&product).unwrap();
    assert_eq!(kernel.version, "6.12.117_1~deb12u1");
    assert_eq!(kernel.vmlinuz, product.join("vmlinuz"));
    let names: Vec<_> = kernel.modules.iter().filter_map(|path| path.file_name()).collect();
    assert_eq!(names, ["00-irqbypass.ko", "01-kvm.ko"]);
}
