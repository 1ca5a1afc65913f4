//! Users and groups of the guest's root file system: /etc/passwd and /etc/group, read as text.
//!
//! Called by the helper, inside the new root. No NSS: a static program cannot load it, and a guest image seldom has it.
use casemate_agent_protocol::User;

const MAX_FILE: u64 = 1 << 20;

/// Whom a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
    pub name: Option<String>,
}

/// Resolves `user`; the error is a sentence for the user.
pub fn resolve(user: &User, groups: &[u32]) -> Result<Identity, String> {
    resolve_in(user, groups, &read("/etc/passwd"), &read("/etc/group"))
}

fn read(path: &str) -> String {
    use std::io::Read;
    let mut text = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // A missing or unreadable file is an empty one: numbers still work.
        let _ = file.take(MAX_FILE).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?;
        Some(Passwd { name, uid, gid, home })
    })
}

/// Name, gid and members of each line.
fn group(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

fn resolve_in(user: &User, groups: &[u32], passwd_text: &str, group_text: &str) -> Result<Identity, String> {
    let (entry, uid, gid) = match user {
        User::Ids { uid, gid } => {
            let entry = passwd(passwd_text).find(|p| p.uid == *uid);
            let gid = gid.or(entry.as_ref().map(|e| e.gid)).unwrap_or(0);
            (entry, *uid, gid)
        }
        User::Name { user, group: wanted } => {
            let entry = passwd(passwd_text).find(|p| p.name == user);
            let number = user.parse().ok();
            let entry = entry.or_else(|| passwd(passwd_text).find(|p| Some(p.uid) == number));
            let Some(uid) = entry.as_ref().map(|e| e.uid).or(number) else {
                return Err(format!("no user '{user}' in the guest's /etc/passwd"));
            };
            let gid = match wanted {
                None => entry.as_ref().map_or(0, |e| e.gid),
                Some(name) => group(group_text)
                    .find(|(n, ..)| n == name)
                    .map(|(_, gid, _)| gid)
                    .or_else(|| name.parse().ok())
                    .ok_or_else(|| format!("no group '{name}' in the guest's /etc/group"))?,
            };
            (entry, uid, gid)
        }
    };
    let mut all = groups.to_vec();
    if let (true, Some(entry)) = (groups.is_empty(), &entry) {
        let member = |(_, gid, members): (&str, u32, &str)| members.split(',').any(|m| m == entry.name).then_some(gid);
        all.extend(group(group_text).filter_map(member).take(256));
    }
    Ok(Identity {
        uid,
        gid,
        groups: all,
        home: entry.as_ref().map_or("/", |e| e.home).to_owned(),
        name: entry.map(|e| e.name.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/srv/web:/bin/false\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:root,web\nweb:x:34:\nmail:x:8:\n";

    fn look(user: &str, groups: &[u32]) -> Result<Identity, String> {
        resolve_in(&user.parse().unwrap(), groups, PASSWD, GROUP)
    }

    #[test]
    fn names_numbers_and_groups() {
        let web = look("web", &[]).unwrap();
        assert_eq!((web.uid, web.gid, web.groups.as_slice(), web.home.as_str()), (33, 34, &[4][..], "/srv/web"));
        assert_eq!(look("33", &[]).unwrap(), web);
        assert_eq!(look("33", &[7]).unwrap().groups, [7]);
        assert_eq!(look("web:mail", &[]).unwrap().gid, 8);
        assert_eq!(look("web:77", &[]).unwrap().gid, 77);
        let nobody = look("4711", &[]).unwrap();
        assert_eq!((nobody.uid, nobody.gid, nobody.home.as_str()), (4711, 0, "/"));
        assert!(look("none", &[]).unwrap_err().contains("'none'"));
        assert!(look("web:none", &[]).is_err());
    }
}
