//! A profile of where this process spends its CPU time, taken by itself.
//!
//! The kernel sends SIGPROF after each hundredth of a second of CPU time, to a thread that is using it. The handler notes the
//! stack of that thread as addresses; names are given to them later, by `pprof` and the program with its symbols, since the program that
//! runs has none. The handler may run between any two instructions, so it allocates nothing, takes no lock of ours, and writes only
//! into room that is always there.

mod encode;

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use encode::{Mapping, Profile, Stack};

/// CPU time between two samples, as in Go's profiles.
const PERIOD: Duration = Duration::from_millis(10);
/// How much of a stack is noted: the frames nearest to where the CPU is.
const DEPTH: usize = 64;
/// Samples that wait to be collected. At one each 10 ms of CPU time, half a second of 10 busy CPUs.
const SLOTS: usize = 512;

/// How often [`CpuProfile::collect`] wants to be called.
pub const COLLECT_EVERY: Duration = Duration::from_millis(100);

/// Why no profile can be taken.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// One is being taken: there is one timer and one handler for the whole process.
    #[error("another CPU profile is being taken")]
    InUse,
    /// The kernel refused the handler or the timer.
    #[error("the CPU profile cannot be started: {0}")]
    Refused(#[source] std::io::Error),
}

/// A CPU profile that is being taken. Dropping it ends it.
#[derive(Debug)]
pub struct CpuProfile {
    samples: BTreeMap<Stack, u64>,
}

impl CpuProfile {
    /// Begins to sample all threads of this process.
    pub fn start() -> Result<CpuProfile, ProfileError> {
        if IN_USE.swap(true, Ordering::AcqRel) {
            return Err(ProfileError::InUse);
        }
        // From here on the end of the value frees what was taken.
        let profile = CpuProfile { samples: BTreeMap::new() };
        // What the unwinder prepares at its first use is not to be prepared in the handler.
        let _ = note_stack(&SCRATCH, 0);
        SLOT.iter().for_each(|slot| slot.state.store(FREE, Ordering::Release));
        LOST.store(0, Ordering::Relaxed);
        install_handler().map_err(ProfileError::Refused)?;
        SAMPLING.store(true, Ordering::Release);
        set_timer(PERIOD).map_err(ProfileError::Refused)?;
        Ok(profile)
    }

    /// Takes over what was sampled since the last call. Samples are lost if it is not called every [`COLLECT_EVERY`].
    pub fn collect(&mut self) {
        for slot in &SLOT {
            if slot.state.load(Ordering::Acquire) == FULL {
                let length = slot.length.load(Ordering::Relaxed).min(DEPTH);
                let frames = slot.frames[..length].iter().map(|frame| frame.load(Ordering::Relaxed)).collect();
                let thread = slot.thread.load(Ordering::Relaxed);
                slot.state.store(FREE, Ordering::Release);
                *self.samples.entry(Stack { thread, frames }).or_default() += 1;
            }
        }
    }

    /// Ends it. Returns the profile as a message of `profile.proto`, which `pprof` reads. It began at `start` and took so long.
    pub fn finish(mut self, start: SystemTime, took: Duration) -> Vec<u8> {
        stop();
        self.collect();
        let samples = std::mem::take(&mut self.samples);
        let names = thread_names(samples.keys().map(|stack| stack.thread));
        let lost = LOST.load(Ordering::Relaxed);
        encode::encode(&Profile { samples, names, mappings: mappings(), lost, start, took, period: PERIOD })
    }
}

impl Drop for CpuProfile {
    fn drop(&mut self) {
        stop();
        IN_USE.store(false, Ordering::Release);
    }
}

/// The addresses at which each thread was met, by its number in the kernel.
fn thread_names(threads: impl Iterator<Item = i32>) -> BTreeMap<i32, String> {
    let name = |thread| std::fs::read_to_string(format!("/proc/self/task/{thread}/comm"));
    // One that has ended has no name any more.
    threads.map(|thread| (thread, name(thread).unwrap_or_default().trim().to_owned())).collect()
}

/// The files whose code is mapped into this process, and where.
fn mappings() -> Vec<Mapping> {
    std::fs::read_to_string("/proc/self/maps").unwrap_or_default().lines().filter_map(encode::mapping).collect()
}

// === What the handler shares with the rest ===

/// One profile at a time.
static IN_USE: AtomicBool = AtomicBool::new(false);
/// Whether the handler notes anything. A signal may be on its way when the timer is stopped, so the handler stays for ever.
static SAMPLING: AtomicBool = AtomicBool::new(false);
/// Samples that found no room.
static LOST: AtomicU64 = AtomicU64::new(0);
/// Where the next sample is put.
static NEXT: AtomicUsize = AtomicUsize::new(0);
static SLOT: [Slot; SLOTS] = [const { Slot::new() }; SLOTS];
static SCRATCH: Slot = Slot::new();

const FREE: u8 = 0;
const BEING_WRITTEN: u8 = 1;
const FULL: u8 = 2;

/// Room for one sample.
struct Slot {
    state: AtomicU8,
    thread: AtomicI32,
    length: AtomicUsize,
    frames: [AtomicUsize; DEPTH],
}

impl Slot {
    const fn new() -> Slot {
        Slot {
            state: AtomicU8::new(FREE),
            thread: AtomicI32::new(0),
            length: AtomicUsize::new(0),
            frames: [const { AtomicUsize::new(0) }; DEPTH],
        }
    }
}

// === The signal ===

fn install_handler() -> std::io::Result<()> {
    // SAFETY: all zeros are a valid sigaction; the fields that count are set below.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
    // Calls that a signal may interrupt go on after it.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, and does only what a handler may: see `on_signal`.
    let status = unsafe { libc::sigaction(libc::SIGPROF, &raw const action, std::ptr::null_mut()) };
    if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Zero stops it.
fn set_timer(period: Duration) -> std::io::Result<()> {
    let micros = libc::suseconds_t::from(period.subsec_micros().cast_signed());
    let interval = libc::timeval { tv_sec: 0, tv_usec: micros };
    let timer = libc::itimerval { it_interval: interval, it_value: interval };
    // SAFETY: the kernel only reads the value, which lives until the call returns.
    let status = unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut()) };
    if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn stop() {
    SAMPLING.store(false, Ordering::Release);
    // It fails only for values that it does not take.
    let _ = set_timer(Duration::ZERO);
}

/// Notes the stack of the thread that it interrupts: atomics, two system calls and the unwinder, which reads tables of the program.
extern "C" fn on_signal(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    if !SAMPLING.load(Ordering::Acquire) {
        return;
    }
    // SAFETY: the location of this thread's errno, which the interrupted code may be about to read.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above, valid as long as the thread lives.
    let kept = unsafe { *errno };
    let slot = &SLOT[NEXT.fetch_add(1, Ordering::Relaxed) % SLOTS];
    let taken = slot.state.compare_exchange(FREE, BEING_WRITTEN, Ordering::Acquire, Ordering::Relaxed);
    if taken.is_ok() {
        // SAFETY: the call has no arguments and always succeeds.
        slot.thread.store(unsafe { libc::gettid() }, Ordering::Relaxed);
        // SAFETY: with SA_SIGINFO the third argument is the context of the interrupted thread.
        let interrupted = unsafe { program_counter(context.cast()) };
        slot.length.store(note_stack(slot, interrupted), Ordering::Relaxed);
        slot.state.store(FULL, Ordering::Release);
    } else {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: as above.
    unsafe { *errno = kept };
}

/// The address of the instruction at which a thread was interrupted; 0: it is not known for this kind of processor.
///
/// # Safety
/// `context` is what a handler with SA_SIGINFO was given.
unsafe fn program_counter(context: *const libc::ucontext_t) -> usize {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel fills in the registers.
    let counter = unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] }.cast_unsigned();
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the same.
    let counter = unsafe { (*context).uc_mcontext.pc };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let counter: u64 = {
        let _ = context;
        0
    };
    usize::try_from(counter).unwrap_or(0)
}

// === The stack ===

/// The state of the unwinder, which it alone looks into.
#[repr(C)]
struct Context {
    _private: [u8; 0],
}

// Part of every program in Rust, for panics: the standard library links it.
unsafe extern "C" {
    fn _Unwind_Backtrace(each: extern "C" fn(*mut Context, *mut c_void) -> c_int, data: *mut c_void) -> c_int;
    fn _Unwind_GetIP(context: *mut Context) -> usize;
}

const GO_ON: c_int = 0;
const END_OF_STACK: c_int = 5;

struct Walk {
    slot: &'static Slot,
    interrupted: usize,
    length: usize,
}

/// Writes the stack below the handler into the slot, and returns its length. It begins at `interrupted`; if the unwinder does not come
/// by there, that address is all.
fn note_stack(slot: &'static Slot, interrupted: usize) -> usize {
    let mut walk = Walk { slot, interrupted, length: 0 };
    // SAFETY: the unwinder calls `each_frame` on this thread and before it returns; so `walk`, which nobody else uses, is there.
    unsafe { _Unwind_Backtrace(each_frame, (&raw mut walk).cast()) };
    if walk.length == 0 {
        slot.frames[0].store(interrupted, Ordering::Relaxed);
        return 1;
    }
    walk.length
}

extern "C" fn each_frame(context: *mut Context, data: *mut c_void) -> c_int {
    // SAFETY: `note_stack` passes a pointer to its `Walk`, which is not used while the unwinder runs.
    let walk = unsafe { &mut *data.cast::<Walk>() };
    // SAFETY: the unwinder passes its context, valid during this call.
    let address = unsafe { _Unwind_GetIP(context) };
    let Some(frame) = walk.slot.frames.get(walk.length) else { return END_OF_STACK };
    if walk.length == 0 && address != walk.interrupted {
        // The handler's own frames.
        return GO_ON;
    }
    // But for the first one these are addresses to return to: the call is before.
    frame.store(address.saturating_sub(usize::from(walk.length > 0)), Ordering::Relaxed);
    walk.length += 1;
    GO_ON
}
