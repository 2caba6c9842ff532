//! Handles: numbers that identify instances. A handle is looked up in a table and never
//! dereferenced, so a stale or invented handle yields a state code.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::state::inside_log_callback;
use super::tunnel::{aiot_tunnel_event_t, aiot_tunnel_event_type, EventFunction};
use super::{input, Outcome, Refusal};
use crate::config::Security;
use crate::device::manager::{self, Manager};
use crate::error::Error;
use crate::event::{Event, EventKind};
use crate::state;

/// Added to every handle's number. On 64-bit systems the sum is outside every process's address
/// space: a caller that dereferences a handle crashes at once, and neither a small invented number
/// nor a real address is ever a valid handle.
const FIRST: usize = 0x5A << (usize::BITS - 8);

struct Registry {
    /// The handle given out last. Numbers are not reused.
    last: usize,
    live: BTreeMap<usize, Arc<Instance>>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { last: FIRST, live: BTreeMap::new() });

/// Creates an instance. As in the Link SDK, it connects in plain text until a credential is set.
pub(super) fn create() -> Outcome<*mut c_void> {
    let mut registry = REGISTRY.lock();
    let id = registry.last + 1;
    let callback = Arc::new(Callback::new(id));
    let called = callback.clone();
    let manager = Manager::builder()
        .security(Security::Plain)
        .on_event(move |_, event| called.call(event))
        .build()?;
    let state = Mutex::new(State { start_thread: None, ended: false });
    let instance = Instance { manager, callback, state, returned: Condvar::new() };
    registry.last = id;
    registry.live.insert(id, Arc::new(instance));
    Ok(ptr::without_provenance_mut(id))
}

/// The instance of a valid handle.
pub(super) fn get(handle: *mut c_void) -> Outcome<Arc<Instance>> {
    input::non_null("handle", handle)?;
    REGISTRY.lock().live.get(&handle.addr()).cloned().ok_or_else(stale)
}

/// Removes an instance from the registry. If two callers race, exactly one gets it.
pub(super) fn remove(handle: *mut c_void) -> Outcome<Arc<Instance>> {
    input::non_null("*handle", handle)?;
    let mut registry = REGISTRY.lock();
    let instance = registry.live.remove(&handle.addr()).ok_or_else(stale);
    if registry.live.is_empty() {
        // An empty map keeps its last node, and dlclose would leak it.
        registry.live = BTreeMap::new();
    }
    instance
}

fn stale() -> Refusal {
    let why = "the handle is not valid: it was released, or it is no handle";
    Refusal::new(state::USER_INPUT_EXEC_DISABLED, why)
}

/// What a handle identifies. The registry and every call in progress keep it alive.
pub(super) struct Instance {
    manager: Manager,
    callback: Arc<Callback>,
    state: Mutex<State>,
    /// Signalled when the start thread has returned.
    returned: Condvar,
}

struct State {
    start_thread: Option<libc::pthread_t>,
    /// Set by deinit: start is refused from now on.
    ended: bool,
}

impl Instance {
    pub(super) fn commands(&self) -> manager::Handle {
        self.manager.handle()
    }

    pub(super) fn callback(&self) -> &Callback {
        &self.callback
    }

    /// Runs the manager on the calling thread, the start thread, until it is stopped.
    pub(super) fn run(&self) -> Outcome {
        let mut state = self.state.lock();
        if state.ended {
            return Err(stale());
        }
        if state.start_thread.is_some() {
            return Err(Error::AlreadyRunning.into());
        }
        state.start_thread = Some(current_thread());
        drop(state);
        let _leave = Leave(self);
        Ok(self.manager.run()?)
    }

    /// Stops the start thread and waits until it has returned, unless the caller is a
    /// callback that the start thread may be waiting for.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        self.manager.handle().stop();
        let inside_handler = state.start_thread == Some(current_thread());
        if inside_handler || inside_log_callback() {
            // Callers rely on getting no callback after deinit has returned.
            self.callback.silence();
            return;
        }
        self.returned.wait_while(&mut state, |state| state.start_thread.is_some());
    }
}

/// Not `std::thread::current`: that would leave an allocation behind in each calling thread.
fn current_thread() -> libc::pthread_t {
    // SAFETY: has no preconditions.
    unsafe { libc::pthread_self() }
}

/// Reports on drop that the start thread has returned, also after a panic.
struct Leave<'a>(&'a Instance);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.state.lock().start_thread = None;
        self.0.returned.notify_all();
    }
}

/// The caller's event handler and its data.
pub(super) struct Callback {
    handle: usize,
    function: Mutex<Option<EventFunction>>,
    userdata: AtomicPtr<c_void>,
    silenced: AtomicBool,
}

impl Callback {
    fn new(handle: usize) -> Self {
        Callback {
            handle,
            function: Mutex::new(None),
            userdata: AtomicPtr::default(),
            silenced: AtomicBool::new(false),
        }
    }

    pub(super) fn set_function(&self, function: EventFunction) {
        *self.function.lock() = Some(function);
    }

    pub(super) fn set_userdata(&self, userdata: *mut c_void) {
        self.userdata.store(userdata, Ordering::Release);
    }

    fn silence(&self) {
        self.silenced.store(true, Ordering::Release);
    }

    fn call(&self, event: &Event) {
        // Copied out of the lock: the function may set another one.
        let function = *self.function.lock();
        let Some(function) = function else { return };
        if self.silenced.load(Ordering::Acquire) {
            return;
        }
        let kind = match event.kind {
            EventKind::Connect => aiot_tunnel_event_type::AIOT_TUNNEL_EVT_CONNECT,
            EventKind::Disconnect => aiot_tunnel_event_type::AIOT_TUNNEL_EVT_DISCONNECT,
            EventKind::Expired => aiot_tunnel_event_type::AIOT_TUNNEL_EVT_EXPIRED,
        };
        let mut event_for_c = aiot_tunnel_event_t { r#type: kind, tunnel_id: [0; 128] };
        // The last byte stays NUL, even for the longest id.
        let room = &mut event_for_c.tunnel_id[..127];
        for (to, from) in room.iter_mut().zip(event.tunnel_id.as_str().bytes()) {
            *to = from as _;
        }
        let handle = ptr::without_provenance_mut(self.handle);
        let userdata = self.userdata.load(Ordering::Acquire);
        // SAFETY: setopt's caller promised a function of this type; the event outlives the call.
        unsafe { function(handle, &event_for_c, userdata) };
    }
}
