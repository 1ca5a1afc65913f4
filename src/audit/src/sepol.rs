//! The binding to libsepol, linked dynamically (LGPL-2.1): a policy in memory, questions to it, its text.
//!
//! libsepol's security server is one global state, so one mutex guards it and says which policy it holds; who asks of
//! another policy has it loaded anew (about 70 ms for Debian's). Sources: `sepol/policydb.h`,
//! `sepol/policydb/services.h`, `sepol/kernel_to_cil.h` of libsepol 3.4, the first that exports all that is used here.
#![allow(unsafe_code)]

mod trial;

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{FILE, size_t};
pub use trial::Failed;

/// `SEPOL_COMPUTEAV_*`
pub const BY_TYPE_ENFORCEMENT: u32 = 1;
pub const BY_CONSTRAINT: u32 = 2;

#[repr(C)]
#[derive(Default)]
struct AvDecision {
    allowed: u32,
    decided: u32,
    auditallow: u32,
    auditdeny: u32,
    seqno: u32,
}

#[link(name = "sepol")]
unsafe extern "C" {
    fn sepol_debug(on: c_int);
    fn sepol_policy_kern_vers_min() -> c_int;
    fn sepol_policy_kern_vers_max() -> c_int;
    fn sepol_policydb_create(db: *mut *mut c_void) -> c_int;
    fn sepol_policydb_free(db: *mut c_void);
    fn sepol_policydb_read(db: *mut c_void, file: *mut c_void) -> c_int;
    fn sepol_policydb_to_image(handle: *mut c_void, db: *mut c_void, data: *mut *mut c_void, len: *mut size_t)
    -> c_int;
    fn sepol_policy_file_create(file: *mut *mut c_void) -> c_int;
    fn sepol_policy_file_free(file: *mut c_void);
    fn sepol_policy_file_set_mem(file: *mut c_void, data: *mut c_char, len: size_t);
    fn sepol_policy_file_set_handle(file: *mut c_void, handle: *mut c_void);
    fn sepol_handle_create() -> *mut c_void;
    fn sepol_handle_destroy(handle: *mut c_void);
    fn sepol_msg_set_callback(handle: *mut c_void, callback: *const c_void, argument: *mut c_void);
    fn sepol_kernel_policydb_to_cil(out: *mut FILE, db: *mut c_void) -> c_int;
    fn sepol_bool_create(handle: *mut c_void, boolean: *mut *mut c_void) -> c_int;
    fn sepol_bool_free(boolean: *mut c_void);
    fn sepol_bool_set_name(handle: *mut c_void, boolean: *mut c_void, name: *const c_char) -> c_int;
    fn sepol_bool_set_value(boolean: *mut c_void, value: c_int);
    fn sepol_bool_key_create(handle: *mut c_void, name: *const c_char, key: *mut *mut c_void) -> c_int;
    fn sepol_bool_key_free(key: *mut c_void);
    fn sepol_bool_set(handle: *mut c_void, db: *mut c_void, key: *const c_void, boolean: *const c_void) -> c_int;
    fn sepol_set_policydb_from_file(file: *mut FILE) -> c_int;
    fn sepol_context_to_sid(context: *const c_char, len: size_t, sid: *mut u32) -> c_int;
    fn sepol_string_to_security_class(name: *const c_char, class: *mut u16) -> c_int;
    fn sepol_string_to_av_perm(class: u16, name: *const c_char, av: *mut u32) -> c_int;
    fn sepol_compute_av_reason(
        source: u32,
        target: u32,
        class: u16,
        requested: u32,
        decision: *mut AvDecision,
        reason: *mut c_uint,
    ) -> c_int;
    fn sepol_compute_av_reason_buffer(
        source: u32,
        target: u32,
        class: u16,
        requested: u32,
        decision: *mut AvDecision,
        reason: *mut c_uint,
        buffer: *mut *mut c_char,
        flags: c_uint,
    ) -> c_int;
}

/// Kernel policy versions that this libsepol reads.
pub fn versions() -> std::ops::RangeInclusive<u32> {
    // SAFETY: both take nothing and return a constant of the library.
    let (min, max) = unsafe { (sepol_policy_kern_vers_min(), sepol_policy_kern_vers_max()) };
    min.max(0) as u32..=max.max(0) as u32
}

/// A policy database of its own, apart from the security server's.
struct Database {
    handle: *mut c_void,
    db: *mut c_void,
}

impl Database {
    /// Reads a binary policy; `None` where libsepol refuses it. It prints the reason if it is to speak.
    fn read(image: &[u8], speaks: bool) -> Option<Self> {
        let mut new = Self { handle: ptr::null_mut(), db: ptr::null_mut() };
        // SAFETY: creates a handle, owned by `new` from here on; null is checked.
        new.handle = unsafe { sepol_handle_create() };
        if new.handle.is_null() {
            return None;
        }
        if !speaks {
            // SAFETY: the handle is live; a null callback silences it (sepol_msg.c, msg_write).
            unsafe { sepol_msg_set_callback(new.handle, ptr::null(), ptr::null_mut()) };
        }
        // SAFETY: writes a new database to the field, which `drop` frees.
        if unsafe { sepol_policydb_create(&mut new.db) } != 0 {
            return None;
        }
        let mut file = ptr::null_mut();
        // SAFETY: writes a new policy file to the local, freed below.
        if unsafe { sepol_policy_file_create(&mut file) } != 0 {
            return None;
        }
        // SAFETY: file and handle are live.
        unsafe { sepol_policy_file_set_handle(file, new.handle) };
        // SAFETY: libsepol only reads the memory (policydb_read), and `image` outlives the file.
        unsafe { sepol_policy_file_set_mem(file, image.as_ptr().cast_mut().cast(), image.len()) };
        // SAFETY: both are live.
        let read = unsafe { sepol_policydb_read(new.db, file) };
        // SAFETY: made above, used no more.
        unsafe { sepol_policy_file_free(file) };
        (read == 0).then_some(new)
    }

    /// The policy as CIL.
    fn text(&self) -> Option<String> {
        let (mut data, mut len) = (ptr::null_mut::<c_char>(), 0);
        // SAFETY: both out parameters live until fclose below.
        let out = unsafe { libc::open_memstream(&mut data, &mut len) };
        if out.is_null() {
            return None;
        }
        // SAFETY: the stream is open; a sepol_policydb is a policydb and nothing else (policydb_internal.h).
        let written = unsafe { sepol_kernel_policydb_to_cil(out, self.db) };
        // SAFETY: closed once; it flushes to data and len.
        let closed = unsafe { libc::fclose(out) };
        let data = Allocated(data.cast());
        if written != 0 || closed != 0 || data.0.is_null() {
            return None;
        }
        // SAFETY: open_memstream(3): len bytes at data, until it is freed.
        let bytes = unsafe { std::slice::from_raw_parts(data.0.cast::<u8>(), len) };
        Some(String::from_utf8_lossy(bytes).into_owned())
    }

    /// Sets a boolean; false where there is none of that name.
    fn set_boolean(&self, name: &CStr, value: bool) -> bool {
        let (mut key, mut boolean) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: writes a new key to the local; name is a C string.
        if unsafe { sepol_bool_key_create(self.handle, name.as_ptr(), &mut key) } != 0 {
            return false;
        }
        // SAFETY: writes a new boolean to the local.
        let mut good = unsafe { sepol_bool_create(self.handle, &mut boolean) } == 0;
        if good {
            // SAFETY: the boolean is live; the name is copied.
            good = unsafe { sepol_bool_set_name(self.handle, boolean, name.as_ptr()) } == 0;
            // SAFETY: the boolean is live.
            unsafe { sepol_bool_set_value(boolean, c_int::from(value)) };
            // SAFETY: all four are live.
            good = good && unsafe { sepol_bool_set(self.handle, self.db, key, boolean) } == 0;
            // SAFETY: made above, used no more.
            unsafe { sepol_bool_free(boolean) };
        }
        // SAFETY: made above, used no more.
        unsafe { sepol_bool_key_free(key) };
        good
    }

    fn image(&self) -> Option<Vec<u8>> {
        let (mut data, mut len) = (ptr::null_mut(), 0);
        // SAFETY: writes an allocation and its length to the locals.
        let made = unsafe { sepol_policydb_to_image(self.handle, self.db, &mut data, &mut len) };
        let data = Allocated(data);
        if made != 0 || data.0.is_null() {
            return None;
        }
        // SAFETY: libsepol wrote len bytes there.
        Some(unsafe { std::slice::from_raw_parts(data.0.cast::<u8>(), len) }.to_vec())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if !self.db.is_null() {
            // SAFETY: made by sepol_policydb_create, freed once.
            unsafe { sepol_policydb_free(self.db) };
        }
        if !self.handle.is_null() {
            // SAFETY: made by sepol_handle_create, freed once, after what used it.
            unsafe { sepol_handle_destroy(self.handle) };
        }
    }
}

/// Memory of malloc's, given to us.
struct Allocated(*mut c_void);

impl Drop for Allocated {
    fn drop(&mut self) {
        // SAFETY: null, or malloc'ed by the callee and ours; freed once.
        unsafe { libc::free(self.0) };
    }
}

/// What the policy says as text, after a trial in a child process: an image that libsepol refuses, or that makes it
/// crash or run without end, is an error.
pub fn text(image: &[u8]) -> Result<String, Failed> {
    let _one_at_a_time = server();
    trial::text(image)
}

/// libsepol's own messages go to standard error again.
fn speak() {
    // SAFETY: sets a flag of the default handler's; called in a child, which has one thread.
    unsafe { sepol_debug(1) };
}

/// The same policy with these booleans set. `None` where it lacks one of them.
pub fn with_booleans(image: &[u8], values: &[(&str, bool)]) -> Option<Vec<u8>> {
    let _one_at_a_time = server();
    let db = Database::read(image, false)?;
    for (name, value) in values {
        let name = CString::new(*name).ok()?;
        if !db.set_boolean(&name, *value) {
            return None;
        }
    }
    db.image()
}

/// The security server's state: which policy it holds, and what was looked up in it.
#[derive(Default)]
pub struct Server {
    holds: Option<u64>,
    sids: HashMap<String, Option<u32>>,
    classes: HashMap<String, Option<u16>>,
    permissions: HashMap<u16, HashMap<String, Option<u32>>>,
}

static SERVER: Mutex<Option<Server>> = Mutex::new(None);

fn server() -> MutexGuard<'static, Option<Server>> {
    let mut guard = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    guard.get_or_insert_with(|| {
        // SAFETY: silences the default handler, under the lock.
        unsafe { sepol_debug(0) };
        Server::default()
    });
    guard
}

/// Asks the server while it holds the policy `id`, which is loaded if another one is there. `None`: it cannot be loaded.
pub fn with<T>(id: u64, image: &[u8], ask: impl FnOnce(&mut Server) -> T) -> Option<T> {
    let mut guard = server();
    let server = guard.as_mut()?;
    if server.holds != Some(id) {
        *server = Server::default();
        if !load(image) {
            return None;
        }
        server.holds = Some(id);
    }
    Some(ask(server))
}

fn load(image: &[u8]) -> bool {
    // SAFETY: a stream that reads `image`, which outlives it; libsepol does not write to it.
    let file = unsafe { libc::fmemopen(image.as_ptr().cast_mut().cast(), image.len(), c"r".as_ptr()) };
    if file.is_null() {
        return false;
    }
    // SAFETY: an open stream; the state it replaces is guarded by our mutex.
    let loaded = unsafe { sepol_set_policydb_from_file(file) };
    // SAFETY: opened above, closed once.
    unsafe { libc::fclose(file) };
    loaded == 0
}

/// One decision: the allowed bits, what refused the others, and the constraints in words.
pub struct Decision {
    pub allowed: u32,
    pub reason: u32,
    pub words: Option<String>,
}

impl Server {
    /// The number of a context; `None` where the policy does not accept it.
    pub fn sid(&mut self, context: &str) -> Option<u32> {
        if let Some(known) = self.sids.get(context) {
            return *known;
        }
        let text = CString::new(context).ok()?;
        let mut sid = 0;
        // SAFETY: a C string with its length (the NUL counts, services.c), and an out parameter.
        let found = unsafe { sepol_context_to_sid(text.as_ptr(), text.as_bytes_with_nul().len(), &mut sid) };
        let sid = (found == 0).then_some(sid);
        self.sids.insert(context.to_owned(), sid);
        sid
    }

    pub fn class(&mut self, name: &str) -> Option<u16> {
        if let Some(known) = self.classes.get(name) {
            return *known;
        }
        let text = CString::new(name).ok()?;
        let mut class = 0;
        // SAFETY: a C string and an out parameter.
        let found = unsafe { sepol_string_to_security_class(text.as_ptr(), &mut class) };
        let class = (found == 0).then_some(class);
        self.classes.insert(name.to_owned(), class);
        class
    }

    pub fn permission(&mut self, class: u16, name: &str) -> Option<u32> {
        if let Some(known) = self.permissions.get(&class).and_then(|known| known.get(name)) {
            return *known;
        }
        let text = CString::new(name).ok()?;
        let mut bit = 0;
        // SAFETY: a class that sepol_string_to_security_class gave, a C string, an out parameter.
        let found = unsafe { sepol_string_to_av_perm(class, text.as_ptr(), &mut bit) };
        let bit = (found == 0).then_some(bit);
        self.permissions.entry(class).or_default().insert(name.to_owned(), bit);
        bit
    }

    /// What `source` may do to `target`; with `words`, also the constraints that refuse `requested`.
    pub fn decide(&mut self, source: u32, target: u32, class: u16, requested: u32, words: bool) -> Option<Decision> {
        let mut decision = AvDecision::default();
        let mut reason = 0;
        let mut buffer = ptr::null_mut();
        let answered = if words {
            // SAFETY: SIDs and class are this server's own, the out parameters are live.
            unsafe {
                sepol_compute_av_reason_buffer(
                    source,
                    target,
                    class,
                    requested,
                    &mut decision,
                    &mut reason,
                    &mut buffer,
                    0,
                )
            }
        } else {
            // SAFETY: as above.
            unsafe { sepol_compute_av_reason(source, target, class, requested, &mut decision, &mut reason) }
        };
        let buffer = Allocated(buffer.cast());
        if answered != 0 {
            return None;
        }
        let words = (!buffer.0.is_null()).then(|| {
            // SAFETY: not null, so a C string of libsepol's, until it is freed.
            unsafe { CStr::from_ptr(buffer.0.cast()) }.to_string_lossy().into_owned()
        });
        Some(Decision { allowed: decision.allowed, reason, words })
    }
}
