//! Records that belong together: one event has one stamp, and a Landlock domain is told once for many denials.

use std::collections::{BTreeMap, HashMap};

use super::record::{Kind, Record, Stamp};

/// Most events that are kept; the oldest go.
const MAX_EVENTS: usize = 100_000;
const MAX_RECORDS: usize = 64;
/// Most domains that are known; of more, those that were told first are forgotten.
const MAX_DOMAINS: usize = 10_000;
/// Most boots that one number is known of.
const MAX_TOLD: usize = 8;

/// Who made a Landlock domain (LANDLOCK_DOMAIN, told with the first denial in it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    pub pid: Option<u32>,
    pub uid: Option<u32>,
    pub exe: Option<String>,
    pub comm: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    pub records: Vec<Record>,
}

impl Event {
    pub fn first(&self, kind: Kind) -> Option<&Record> {
        self.all(kind).next()
    }

    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.kind == kind)
    }

    /// The first record of the event that has this field.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.records.iter().find_map(|record| record.field(name))
    }
}

/// All that was read, of whichever source; the same record of two sources counts once.
#[derive(Debug, Default)]
pub struct Events {
    events: BTreeMap<Stamp, Event>,
    /// By the domain's number, which no other of the same boot has.
    domains: HashMap<String, Vec<(u64, Domain)>>,
    /// Events that were let go because there were too many.
    pub dropped: u64,
}

impl Events {
    /// Takes a record; whether it was new.
    pub fn add(&mut self, record: Record) -> bool {
        self.note(&record);
        let event = self.events.entry(record.stamp).or_default();
        if event.records.len() >= MAX_RECORDS || event.records.contains(&record) {
            return false;
        }
        event.records.push(record);
        if self.events.len() > MAX_EVENTS {
            self.events.pop_first();
            self.dropped += 1;
        }
        true
    }

    /// Takes from a record of another time what later ones need.
    pub fn note(&mut self, record: &Record) {
        if record.kind == Kind::LANDLOCK_DOMAIN {
            self.note_domain(record);
        }
    }

    fn note_domain(&mut self, record: &Record) {
        // `status=deallocated` says nothing of who made it.
        let Some(id) = record.field("domain").filter(|_| record.field("status") == Some("allocated")) else { return };
        let number = |name| record.number(name).and_then(|n| u32::try_from(n).ok());
        let owned = |name| record.field(name).map(str::to_owned);
        let domain = Domain { pid: number("pid"), uid: number("uid"), exe: owned("exe"), comm: owned("comm") };
        self.learn(id, record.stamp.seconds, domain);
    }

    fn learn(&mut self, id: &str, at: u64, domain: Domain) {
        if self.domains.len() >= MAX_DOMAINS && !self.domains.contains_key(id) {
            let last = |told: &[(u64, Domain)]| told.iter().map(|(at, _)| *at).max();
            let oldest = self.domains.iter().min_by_key(|(_, told)| last(told)).map(|(id, _)| id.clone());
            oldest.and_then(|oldest| self.domains.remove(&oldest));
        }
        let told = self.domains.entry(id.to_owned()).or_default();
        if told.len() < MAX_TOLD && !told.iter().any(|(time, known)| *time == at && *known == domain) {
            told.push((at, domain));
        }
    }

    /// What others have learned of domains.
    pub fn learn_from(&mut self, others: &Events) {
        for (id, told) in &others.domains {
            told.iter().for_each(|(at, domain)| self.learn(id, *at, domain.clone()));
        }
    }

    /// Takes one event out; what is known of domains stays.
    pub fn remove(&mut self, stamp: &Stamp) -> Option<Event> {
        self.events.remove(stamp)
    }

    /// Takes out all since then.
    pub fn split_off(&mut self, seconds: u64) -> BTreeMap<Stamp, Event> {
        self.events.split_off(&Stamp { seconds, millis: 0, serial: 0 })
    }

    /// The domain of that number as it was told nearest to this time: numbers begin anew with each boot.
    pub fn domain(&self, id: &str, at: u64) -> Option<&Domain> {
        let told = self.domains.get(id)?;
        told.iter().min_by_key(|(time, _)| time.abs_diff(at)).map(|(_, domain)| domain)
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = (&Stamp, &Event)> {
        self.events.iter()
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(line: &str) -> Record {
        Record::of_kernel(format!("audit: {line}").as_bytes()).unwrap()
    }

    #[test]
    fn records_of_one_stamp_are_one_event_and_count_once() {
        let mut events = Events::default();
        let avc = "type=1400 audit(1.2:3): avc:  denied  { read } for  pid=7 scontext=a tcontext=b tclass=file";
        assert!(events.add(kernel(avc)));
        assert!(!events.add(kernel(avc)), "the same from another source");
        assert!(events.add(kernel("type=1300 audit(1.2:3): arch=c000003e syscall=2 pid=7")));
        assert!(events.add(kernel("type=1300 audit(1.2:4): arch=c000003e syscall=2 pid=7")));
        assert_eq!(events.len(), 2);
        let (_, event) = events.iter().next().unwrap();
        assert_eq!(event.field("syscall"), Some("2"));
    }

    #[test]
    fn a_domain_is_found_for_later_denials_and_by_its_boot() {
        let mut events = Events::default();
        let told = |time: u32, pid: u32| {
            kernel(&format!(
                "type=1424 audit({time}.0:1): domain=1ab status=allocated mode=enforcing pid={pid} uid=0 exe=\"/x\" comm=\"x\""
            ))
        };
        events.add(told(100, 7));
        events.add(kernel("type=1424 audit(150.0:9): domain=1ab status=deallocated denials=3"));
        events.add(told(9000, 8));
        assert_eq!(events.domain("1ab", 140).unwrap().pid, Some(7));
        assert_eq!(events.domain("1ab", 9100).unwrap().pid, Some(8));
        assert_eq!(events.domain("2", 1), None);
    }

    #[test]
    fn an_endless_event_and_endless_events_are_bounded() {
        let mut events = Events::default();
        for inode in 0..200 {
            events.add(kernel(&format!("type=1302 audit(1.2:3): item={inode} name=\"x\"")));
        }
        assert_eq!(events.iter().next().unwrap().1.records.len(), MAX_RECORDS);
        for serial in 0..=MAX_EVENTS as u64 {
            events.add(kernel(&format!("type=1326 audit(5.0:{serial}): pid=1")));
        }
        assert_eq!((events.len(), events.dropped), (MAX_EVENTS, 2));
    }

    #[test]
    fn endless_domains_are_bounded_and_the_newest_are_known() {
        let mut events = Events::default();
        for id in 0..=MAX_DOMAINS {
            let line = format!("type=1424 audit({}.0:1): domain={id:x} status=allocated pid={id} uid=0", 100 + id);
            events.note(&kernel(&line));
        }
        assert_eq!(events.domains.len(), MAX_DOMAINS);
        assert_eq!(events.domain("0", 100), None);
        assert_eq!(events.domain("1", 100).unwrap().pid, Some(1));
        assert!(events.domain(&format!("{MAX_DOMAINS:x}"), 100).is_some());
        let mut others = Events::default();
        others.learn_from(&events);
        others.learn_from(&events);
        assert_eq!((others.domains.len(), others.domains["1"].len()), (MAX_DOMAINS, 1));
    }
}
