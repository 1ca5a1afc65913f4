//! libselinux is linked statically (`selinux-sys/static`), and its regular expressions with it: the jailer starts with
//! every sandbox, and loading two libraries costs it a third of a millisecond. selinux-sys names the first archive only.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-lib=static=pcre2-8");
}
