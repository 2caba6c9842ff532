//! Handles: numbers that identify instances. A handle is looked up in a table and never
//! dereferenced, so a stale or invented handle yields a state code.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};

use super::observe::{
    aiot_tunnel_notice_handler_t, aiot_tunnel_notice_t, may_unwind, notice_for_c, NoticeFunction,
};
use super::state::inside_log_callback;
use super::tunnel::{aiot_tunnel_event_t, aiot_tunnel_event_type, EventFunction};
use super::{input, Outcome, Refusal};
use crate::config::{ConnectParams, Port, Security, Token};
use crate::device::manager::{self, Manager, Run};
use crate::device::subscribers::Observation;
use crate::error::Error;
use crate::event::{Event, EventKind};
use crate::ipc::{ListenOptions, Listener};
use crate::logging::Code;
use crate::sys;

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
    let builder = Manager::builder().security(Security::Plain);
    let manager = builder.build().map_err(|e| Refusal::of("limits", &e))?;
    let state = Mutex::new(State { started: false, ended: false });
    let (callback, returned) = (Callback::new(id), Condvar::new());
    let (listener, headers) = (Mutex::new(None), Mutex::default());
    let instance = Instance { manager, callback, state, returned, listener, headers };
    registry.last = id;
    registry.live.insert(id, Arc::new(instance));
    Ok(ptr::without_provenance_mut(id))
}

/// The instance of a valid handle.
pub(super) fn get(handle: *mut c_void) -> Outcome<Arc<Instance>> {
    input::non_null("handle", handle)?;
    REGISTRY.lock().live.get(&handle.addr()).cloned().ok_or_else(not_valid)
}

fn not_valid() -> Refusal {
    let reason =
        "not valid: it was released by aiot_tunnel_deinit, or aiot_tunnel_init did not return it";
    Refusal::new(Code::ExecDisabled, "handle", reason)
}

/// Removes an instance from the registry. If two callers race, exactly one gets it.
pub(super) fn remove(handle: *mut c_void) -> Outcome<Arc<Instance>> {
    input::non_null("*handle", handle)?;
    let mut registry = REGISTRY.lock();
    let instance = registry.live.remove(&handle.addr()).ok_or_else(not_valid);
    if registry.live.is_empty() {
        // An empty map keeps its last node, and dlclose would leak it.
        registry.live = BTreeMap::new();
    }
    instance
}

/// What a handle identifies. The registry and every call in progress keep it alive.
pub(super) struct Instance {
    manager: Manager,
    callback: Callback,
    state: Mutex<State>,
    /// Signalled when the start thread has returned.
    returned: Condvar,
    listener: Mutex<Option<Listener>>,
    /// Names and values of the headers that the caller adds to each request.
    headers: Mutex<Vec<(String, String)>>,
}

struct State {
    /// A thread is inside `aiot_tunnel_start`.
    started: bool,
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

    /// Adds a header to the requests of later commands.
    pub(super) fn add_header(&self, name: &str, value: &str) -> Outcome {
        let mut headers = self.headers.lock();
        let refused = |e: Error| {
            let argument = if e.is_about("header value") { "value" } else { "name" };
            Refusal::of(argument, &e)
        };
        let empty =
            Token::new("").and_then(|token| ConnectParams::new("host", Port::new(1)?, "/", token));
        let all =
            headers.iter().fold(empty, |params, (name, value)| params?.with_header(name, value));
        all.and_then(|params| params.with_header(name, value)).map_err(refused)?;
        headers.push((name.to_owned(), value.to_owned()));
        Ok(())
    }

    /// The connection data with the caller's headers.
    pub(super) fn with_headers(&self, mut params: ConnectParams) -> Outcome<ConnectParams> {
        for (name, value) in self.headers.lock().iter() {
            params = params.with_header(name, value).map_err(|e| Refusal::of("name", &e))?;
        }
        Ok(params)
    }

    /// Starts the listen thread.
    pub(super) fn listen(&self, options: ListenOptions) -> Outcome {
        let mut listener = self.listener.lock();
        if self.state.lock().ended {
            return Err(not_valid());
        }
        if listener.is_some() {
            let reason = "the instance has a listen thread already";
            return Err(Refusal::new(Code::TunnelRunning, "handle", reason));
        }
        let started = Listener::start(self.commands(), options);
        *listener = Some(started.map_err(|e| Refusal::of("queue", &e))?);
        Ok(())
    }

    /// Ends the listen thread, if there is one, and waits for it.
    fn end_listener(&self) {
        let listener = self.listener.lock().take();
        listener.into_iter().for_each(Listener::stop);
    }

    /// Ends the listen thread, if there is one, and does not wait for it: it may be waiting to log a line.
    fn end_listener_later(&self) {
        let Some(listener) = self.listener.lock().take() else { return };
        let shared = Arc::new(Mutex::new(Some(listener)));
        let for_thread = shared.clone();
        let stop = move || for_thread.lock().take().map(Listener::stop);
        if sys::spawn(thread::Builder::new().name("aiot-end".into()), stop).is_err() {
            let listener = shared.lock().take();
            listener.into_iter().for_each(Listener::abandon);
        }
    }

    /// Stops the start thread and waits until it has returned, unless the caller is a callback: the
    /// start thread may be waiting for it, itself or through a callback of another instance.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        self.manager.handle().stop();
        if !inside_callback() {
            drop(state);
            self.end_listener();
            let mut state = self.state.lock();
            return self.returned.wait_while(&mut state, |state| state.started);
        }
        // Callers rely on getting no callback after deinit has returned.
        self.callback.silence();
        let is_started = state.started;
        drop(state);
        // The start thread ends the listen thread before it returns.
        if !is_started {
            self.end_listener_later();
        }
    }
}

thread_local! {
    static INSIDE_HANDLER: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is inside a handler of any instance, or inside the log callback. There
/// it must not wait for another thread of the library: that one may be waiting for it.
fn inside_callback() -> bool {
    INSIDE_HANDLER.get() || inside_log_callback()
}

thread_local! {
    /// The runs whose start thread this is. Two at most, usually: the event handler of one instance
    /// may start another one. If the handler ends the thread, the runs are dropped with this, or by
    /// [`end_runs`].
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
        let mut state = self.0.state.lock();
        if state.ended {
            drop(state);
            self.0.end_listener();
            state = self.0.state.lock();
        }
        state.started = false;
        drop(state);
        self.0.returned.notify_all();
    }
}

/// Makes the calling thread the start thread of an instance. [`next_call`] is what it has to do.
pub(super) fn start(instance: Arc<Instance>) -> Outcome {
    let mut state = instance.state.lock();
    if state.ended {
        return Err(not_valid());
    }
    if state.started {
        let reason = "another thread is inside aiot_tunnel_start with it";
        return Err(Refusal::new(Code::TunnelRunning, "handle", reason));
    }
    state.started = true;
    drop(state);
    let inside = Inside(instance);
    let run = inside.0.manager.begin().map_err(|e| Refusal::of("handle", &e))?;
    RUNS.with_borrow_mut(|runs| runs.push(StartThread { run, inside }));
    sys::at_thread_end(Some(end_runs));
    Ok(())
}

/// Drops the runs of a thread that has ended without its thread-locals being dropped.
fn end_runs() {
    let runs = RUNS.try_with(RefCell::take).unwrap_or_default();
    // A panic must not get into the C library.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(runs)));
}

/// Runs the manager until a handler is to be called. Returns `None` when it has ended.
pub(super) fn next_call() -> Option<Call> {
    // Taken out meanwhile: a log callback may start another instance.
    let mut started = RUNS.with_borrow_mut(Vec::pop)?;
    let call = loop {
        let Some(observation) = started.run.next() else {
            if RUNS.with_borrow(Vec::is_empty) {
                sys::at_thread_end(None);
            }
            return None;
        };
        if let Some(call) = started.inside.0.callback.call(&observation) {
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
    /// The handler of notices, and the address of its data.
    notices: Mutex<Option<(NoticeFunction, usize)>>,
    silenced: AtomicBool,
}

impl Callback {
    fn new(handle: usize) -> Self {
        Callback {
            handle,
            function: Mutex::new(None),
            userdata: AtomicPtr::default(),
            notices: Mutex::new(None),
            silenced: AtomicBool::new(false),
        }
    }

    pub(super) fn set_function(&self, function: EventFunction) {
        *self.function.lock() = Some(function);
    }

    pub(super) fn set_userdata(&self, userdata: *mut c_void) {
        self.userdata.store(userdata, Ordering::Release);
    }

    pub(super) fn set_notice_function(
        &self,
        function: aiot_tunnel_notice_handler_t,
        userdata: *mut c_void,
    ) {
        let userdata = userdata.expose_provenance();
        *self.notices.lock() = function.map(|function| (may_unwind(function), userdata));
    }

    fn silence(&self) {
        self.silenced.store(true, Ordering::Release);
    }

    /// The call that delivers this. `None` if there is nobody to deliver it to.
    fn call(&self, observation: &Observation) -> Option<Call> {
        if self.silenced.load(Ordering::Acquire) {
            return None;
        }
        let handle = ptr::without_provenance_mut(self.handle);
        match observation {
            Observation::Event(event) => {
                let function = (*self.function.lock())?;
                let userdata = self.userdata.load(Ordering::Acquire);
                Some(Call::Event { function, handle, event: event_for_c(event), userdata })
            }
            Observation::Notice(notice) => {
                let (function, userdata) = (*self.notices.lock())?;
                let userdata = ptr::with_exposed_provenance_mut(userdata);
                let notice = notice_for_c(notice);
                Some(Call::Notice { function, handle, notice, userdata })
            }
            Observation::Missed(_) => None,
        }
    }
}

fn event_for_c(event: &Event) -> aiot_tunnel_event_t {
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
    event_for_c
}

/// A call of a handler. It holds nothing that would have to be dropped.
#[expect(clippy::large_enum_variant, reason = "a box would have to be dropped")]
pub(super) enum Call {
    Event {
        function: EventFunction,
        handle: *mut c_void,
        event: aiot_tunnel_event_t,
        userdata: *mut c_void,
    },
    Notice {
        function: NoticeFunction,
        handle: *mut c_void,
        notice: aiot_tunnel_notice_t,
        userdata: *mut c_void,
    },
}

impl Call {
    /// Calls the handler. This may not return: see `aiot_tunnel_start`.
    pub(super) fn make(&self) {
        // A handler may start another instance, whose handler then runs inside it.
        let former = INSIDE_HANDLER.replace(true);
        match self {
            Call::Event { function, handle, event, userdata } => {
                // SAFETY: setopt's caller promised a function of this type; the event outlives the call.
                unsafe { function(*handle, event, *userdata) };
            }
            Call::Notice { function, handle, notice, userdata } => {
                // SAFETY: the caller promised a function of this type; the notice outlives the call.
                unsafe { function(*handle, notice, *userdata) };
            }
        }
        INSIDE_HANDLER.set(former);
    }
}
