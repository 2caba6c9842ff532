//! Handles: numbers that identify instances. A handle is looked up in a table and never
//! dereferenced, so a stale or invented handle yields a state code.

use std::cell::RefCell;
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
use crate::device::manager::{self, Manager, Run};
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
    let manager = Manager::builder().security(Security::Plain).build()?;
    let state = Mutex::new(State { start_thread: None, ended: false });
    let instance =
        Instance { manager, callback: Callback::new(id), state, returned: Condvar::new() };
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
    callback: Callback,
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

thread_local! {
    /// The runs whose start thread this is. Two at most, usually: the event handler of one instance
    /// may start another one. If the handler ends the thread, the runs are dropped with this.
    static RUNS: RefCell<Vec<StartThread>> = const { RefCell::new(Vec::new()) };
}

/// The start thread of an instance. When it is dropped, the run ends first.
struct StartThread {
    run: Run,
    inside: Inside,
}

/// Reports on drop that the start thread has returned, also after a panic.
struct Inside(Arc<Instance>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.state.lock().start_thread = None;
        self.0.returned.notify_all();
    }
}

/// Makes the calling thread the start thread of an instance. [`next_call`] is what it has to do.
pub(super) fn start(instance: Arc<Instance>) -> Outcome {
    let mut state = instance.state.lock();
    if state.ended {
        return Err(stale());
    }
    if state.start_thread.is_some() {
        return Err(Error::AlreadyRunning.into());
    }
    state.start_thread = Some(current_thread());
    drop(state);
    let inside = Inside(instance);
    let run = inside.0.manager.begin()?;
    RUNS.with_borrow_mut(|runs| runs.push(StartThread { run, inside }));
    Ok(())
}

/// Runs the manager until its event handler is to be called. Returns `None` when it has ended.
pub(super) fn next_call() -> Option<Call> {
    // Taken out meanwhile: a log callback may start another instance.
    let mut started = RUNS.with_borrow_mut(Vec::pop)?;
    let call = loop {
        let event = started.run.next()?;
        if let Some(call) = started.inside.0.callback.call(&event) {
            break call;
        }
    };
    RUNS.with_borrow_mut(|runs| runs.push(started));
    Some(call)
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

    /// The call that delivers an event. `None` if there is nobody to deliver it to.
    fn call(&self, event: &Event) -> Option<Call> {
        let function = (*self.function.lock())?;
        if self.silenced.load(Ordering::Acquire) {
            return None;
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
        Some(Call {
            function,
            handle: ptr::without_provenance_mut(self.handle),
            event: event_for_c,
            userdata: self.userdata.load(Ordering::Acquire),
        })
    }
}

/// A call of the event handler. It holds nothing that would have to be dropped.
pub(super) struct Call {
    function: EventFunction,
    handle: *mut c_void,
    event: aiot_tunnel_event_t,
    userdata: *mut c_void,
}

impl Call {
    /// Calls the handler. This may not return: see `aiot_tunnel_start`.
    pub(super) fn make(&self) {
        // SAFETY: setopt's caller promised a function of this type; the event outlives the call.
        unsafe { (self.function)(self.handle, &self.event, self.userdata) };
    }
}
