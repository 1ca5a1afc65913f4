//! What a Landlock ruleset of an ABI handles, in the kernel's words (include/uapi/linux/landlock.h).
//!
//! `confine` builds its rulesets with the landlock crate and holds this table against it; the auditor shows it.

/// File system rights, with the ABI that brought them.
const FS: [(u32, &str); 17] = [
    (1, "execute"),
    (1, "write_file"),
    (1, "read_file"),
    (1, "read_dir"),
    (1, "remove_dir"),
    (1, "remove_file"),
    (1, "make_char"),
    (1, "make_dir"),
    (1, "make_reg"),
    (1, "make_sock"),
    (1, "make_fifo"),
    (1, "make_block"),
    (1, "make_sym"),
    (2, "refer"),
    (3, "truncate"),
    (5, "ioctl_dev"),
    (9, "resolve_unix"),
];
const NET: [(u32, &str); 4] = [(4, "bind_tcp"), (4, "connect_tcp"), (10, "bind_udp"), (10, "connect_send_udp")];
const SCOPE: [(u32, &str); 2] = [(6, "abstract_unix_socket"), (6, "signal")];

/// Rights that a ruleset of ours handles with this ABI: all that it offers, so all are denied where no rule allows them.
/// `fs.…`, `net.…`, `scope.…`.
pub fn handled(abi: u32) -> Vec<String> {
    let rows = [("fs", &FS[..]), ("net", &NET[..]), ("scope", &SCOPE[..])];
    let of = |(kind, rights): (&'static str, &'static [(u32, &'static str)])| {
        rights.iter().filter(move |(since, _)| *since <= abi).map(move |(_, right)| format!("{kind}.{right}"))
    };
    rows.into_iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abi_handles_what_came_with_it_and_before() {
        assert!(handled(0).is_empty());
        assert_eq!(handled(1).len(), 13);
        assert!(!handled(5).contains(&"scope.signal".to_owned()));
        assert!(handled(6).contains(&"scope.signal".to_owned()));
        assert!(handled(4).contains(&"net.connect_tcp".to_owned()));
    }
}
