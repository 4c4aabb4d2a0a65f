//! The balancer: computes placements beside the hot path and offers them.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::bounded::limit_moves;
use super::cell::{PlacementCell, PlacementReader};
use super::error::{EplbError, bad};
use super::migrate::MigrationPlan;
use super::placement::Placement;
use super::rebalance::{Options, rebalance};
use super::window::LoadTotals;

/// Where the placement is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// On a worker thread.
    Async,
    /// Inside [`Balancer::submit`]. For tests and offline tools.
    Sync,
}

/// Settings of a [`Balancer`].
#[derive(Debug, Clone, Copy)]
pub struct BalancerConfig {
    /// Where to compute. Default: [`Mode::Async`].
    pub mode: Mode,
    /// A request that takes longer than this counts as hanging. Default: 10 s.
    pub deadline: Duration,
    /// Most expert copies per rebalance. Default: no bound.
    pub max_moves: Option<usize>,
    /// Offer a placement only if the mean balancedness over the layers grows by at least this.
    /// Default: 0.01.
    pub min_gain: f64,
    /// See [`Options::spread`]. Default: true.
    pub spread: bool,
    /// See [`Options::parallel`]. Default: false, so that the hot path keeps rayon's pool.
    pub parallel: bool,
}

impl Default for BalancerConfig {
    fn default() -> Self {
        Self {
            mode: Mode::Async,
            deadline: Duration::from_secs(10),
            max_moves: None,
            min_gain: 0.01,
            spread: true,
            parallel: false,
        }
    }
}

/// What a solver answers: a placement, or `None` where the one in use should stay.
pub type Proposal = Option<Placement>;

/// Computes a placement from the load and the placement in use.
pub type Solver = Arc<dyn Fn(&LoadTotals, &Placement) -> Result<Proposal, EplbError> + Send + Sync>;

/// A placement ready to be taken up.
#[derive(Debug, Clone)]
pub struct Offer {
    placement: Arc<Placement>,
    migration: MigrationPlan,
    base: u64,
    elapsed: Duration,
}

impl Offer {
    /// The offered placement.
    #[must_use]
    pub fn placement(&self) -> &Arc<Placement> {
        &self.placement
    }

    /// The copies to make before [`Balancer::commit`].
    #[must_use]
    pub fn migration(&self) -> &MigrationPlan {
        &self.migration
    }

    /// Time it took to compute.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }
}

/// State of the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// Waits for a request.
    Idle,
    /// Has been computing for this long, within the deadline.
    Busy(Duration),
    /// Has been computing for this long, past the deadline.
    Hung(Duration),
    /// Panicked or ended, for this reason.
    Dead(String),
}

/// Computes placements on a worker thread and swaps them between steps.
///
/// The loop of a server, on each rank (all ranks must submit equal totals and commit at the same
/// step; equal totals give equal placements):
///
/// 1. every step: push the step's load to a [`LoadWindow`](super::LoadWindow);
/// 2. now and then: add the totals over ranks and [`submit`](Self::submit) them;
/// 3. between steps: [`poll`](Self::poll); on an [`Offer`] copy the weights as its migration plan
///    says, then [`commit`](Self::commit).
///
/// No method waits for a computation (except `submit` in [`Mode::Sync`]). A worker that panicked
/// or hangs is reported by every `poll` until [`restart`](Self::restart); the placement in use
/// stays valid meanwhile.
pub struct Balancer {
    cell: Arc<PlacementCell>,
    config: BalancerConfig,
    solver: Solver,
    worker: Worker,
}

struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What caller and worker share. Both locks are held for moves of a pointer only.
struct Shared {
    start: Instant,
    inbox: Mutex<Inbox>,
    wake: Condvar,
    outcome: Mutex<Option<Result<Offer, EplbError>>>,
    ready: AtomicBool,
    /// Nanoseconds from `start` to the begin of the work, plus 1; 0 while there is none.
    busy_since: AtomicU64,
    died: OnceLock<String>,
}

#[derive(Default)]
struct Inbox {
    loads: Option<LoadTotals>,
    stop: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs under these locks, so poison cannot mean a broken value.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Balancer {
    /// A balancer around the placement in use, with [`rebalance`] as the solver.
    ///
    /// # Errors
    /// [`EplbError::Argument`] if `min_gain` is NaN; [`EplbError::WorkerSpawn`] if the thread
    /// cannot be started.
    pub fn new(initial: Placement, config: BalancerConfig) -> Result<Self, EplbError> {
        if config.min_gain.is_nan() {
            return Err(bad("balancer", "min_gain", "a number", config.min_gain));
        }
        let solver = move |loads: &LoadTotals, current: &Placement| {
            let load = loads.to_load();
            let options = Options {
                spread: config.spread,
                parallel: config.parallel,
                previous: Some(current),
                ..Options::default()
            };
            let mut next = rebalance(&load, current.shape(), &options)?;
            if let Some(max_moves) = config.max_moves {
                next = limit_moves(current, &next, &load, max_moves)?;
            }
            let mean = |p: &Placement| -> Result<f64, EplbError> {
                let b = p.balancedness(&load)?;
                Ok(b.iter().sum::<f64>() / b.len() as f64)
            };
            let gain = mean(&next)? - mean(current)?;
            Ok((next != *current && gain >= config.min_gain).then_some(next))
        };
        Self::with_solver(initial, config, Arc::new(solver))
    }

    /// A balancer with a solver of one's own, which alone decides what is offered: of `config` only
    /// `mode` and `deadline` are used.
    ///
    /// # Errors
    /// [`EplbError::WorkerSpawn`] if the thread cannot be started.
    pub fn with_solver(initial: Placement, config: BalancerConfig, solver: Solver) -> Result<Self, EplbError> {
        let cell = PlacementCell::new(initial);
        let worker = Worker::start(&cell, &solver, config.mode)?;
        Ok(Self { cell, config, solver, worker })
    }

    /// A reader of the placement in use, for a thread of the hot path.
    #[must_use]
    pub fn reader(&self) -> PlacementReader {
        self.cell.reader()
    }

    /// The cell that holds the placement in use.
    #[must_use]
    pub fn cell(&self) -> &Arc<PlacementCell> {
        &self.cell
    }

    /// Hands in the load for a new placement. A request that the worker has not taken up yet is
    /// replaced. In [`Mode::Async`] this moves a pointer and returns.
    ///
    /// # Errors
    /// [`EplbError::Argument`] if the totals have other sizes than the placement.
    pub fn submit(&self, loads: LoadTotals) -> Result<(), EplbError> {
        let (_, current) = self.cell.snapshot();
        let (l, e) = (current.shape().layers, current.shape().experts);
        if (loads.layers(), loads.experts()) != (l, e) {
            let got = format!("{} x {}", loads.layers(), loads.experts());
            return Err(bad("balancer.submit", "loads", format!("{l} x {e}"), got));
        }
        let shared = &self.worker.shared;
        if self.config.mode == Mode::Sync {
            shared.solve(&self.cell, &self.solver, &loads);
            return Ok(());
        }
        let mut inbox = lock(&shared.inbox);
        let replaced = inbox.loads.replace(loads);
        if shared.busy_since.load(Ordering::Relaxed) == 0 {
            shared.mark_busy();
        }
        drop(inbox);
        shared.wake.notify_one();
        drop(replaced);
        Ok(())
    }

    /// Takes the offer that is ready, if there is one. Costs an atomic read or two otherwise.
    /// An offer that a commit has made stale is dropped.
    ///
    /// # Errors
    /// What the solver returned, once; [`EplbError::WorkerDied`] or [`EplbError::WorkerHung`], at
    /// every call until [`restart`](Self::restart).
    pub fn poll(&self) -> Result<Option<Offer>, EplbError> {
        let shared = &self.worker.shared;
        if shared.ready.swap(false, Ordering::AcqRel)
            && let Some(outcome) = lock(&shared.outcome).take()
        {
            let base = self.cell.generation();
            return outcome.map(|offer| Some(offer).filter(|o| o.base == base));
        }
        match self.health() {
            Health::Dead(reason) => Err(EplbError::WorkerDied { reason }),
            Health::Hung(busy) => Err(EplbError::WorkerHung { busy, deadline: self.config.deadline }),
            Health::Idle | Health::Busy(_) => Ok(None),
        }
    }

    /// Puts an offered placement in use and returns its generation and the former placement.
    ///
    /// Call it between two steps, after the weights were copied. It exchanges two pointers;
    /// whoever drops the last `Arc` of the former placement pays for freeing it.
    ///
    /// # Errors
    /// [`EplbError::StaleOffer`] if another placement was put in use since the offer was computed.
    pub fn commit(&self, offer: Offer) -> Result<(u64, Arc<Placement>), EplbError> {
        let Offer { placement, base, .. } = offer;
        self.cell.swap(base, placement).map_err(|current| EplbError::StaleOffer { base, current })
    }

    /// The watchdog: looks at the worker without waiting for it.
    #[must_use]
    pub fn health(&self) -> Health {
        let shared = &self.worker.shared;
        if let Some(reason) = shared.died.get() {
            return Health::Dead(reason.clone());
        }
        if self.worker.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            return Health::Dead("the thread ended".to_owned());
        }
        match shared.busy_since.load(Ordering::Acquire) {
            0 => Health::Idle,
            since => {
                let busy = shared.start.elapsed().saturating_sub(Duration::from_nanos(since - 1));
                if busy > self.config.deadline { Health::Hung(busy) } else { Health::Busy(busy) }
            }
        }
    }

    /// Abandons the worker, whatever its state, and starts a new one. What the old one still
    /// computes is thrown away; a request it has not taken up is lost.
    ///
    /// # Errors
    /// [`EplbError::WorkerSpawn`] if the thread cannot be started; the old worker stays then.
    pub fn restart(&mut self) -> Result<(), EplbError> {
        self.worker = Worker::start(&self.cell, &self.solver, self.config.mode)?;
        Ok(())
    }
}

impl std::fmt::Debug for Balancer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Balancer")
            .field("config", &self.config)
            .field("generation", &self.cell.generation())
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}

impl Worker {
    fn start(cell: &Arc<PlacementCell>, solver: &Solver, mode: Mode) -> Result<Self, EplbError> {
        let shared = Arc::new(Shared {
            start: Instant::now(),
            inbox: Mutex::default(),
            wake: Condvar::new(),
            outcome: Mutex::default(),
            ready: AtomicBool::new(false),
            busy_since: AtomicU64::new(0),
            died: OnceLock::new(),
        });
        let thread = match mode {
            Mode::Sync => None,
            Mode::Async => {
                let (shared, cell, solver) = (Arc::clone(&shared), Arc::clone(cell), Arc::clone(solver));
                let spawned =
                    std::thread::Builder::new().name("eplb".to_owned()).spawn(move || shared.serve(&cell, &solver));
                let reason = |e: std::io::Error| EplbError::WorkerSpawn { reason: e.to_string() };
                Some(spawned.map_err(reason)?)
            }
        };
        Ok(Self { shared, thread })
    }
}

impl Drop for Worker {
    /// Tells the thread to end; does not wait for it, because it may hang.
    fn drop(&mut self) {
        lock(&self.shared.inbox).stop = true;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    fn mark_busy(&self) {
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX - 1);
        self.busy_since.store(now + 1, Ordering::Release);
    }

    /// The worker's loop: ends when told to, or after a panic of the solver.
    fn serve(&self, cell: &PlacementCell, solver: &Solver) {
        let mut inbox = lock(&self.inbox);
        loop {
            if inbox.stop {
                return;
            }
            let Some(loads) = inbox.loads.take() else {
                self.busy_since.store(0, Ordering::Release);
                inbox = self.wake.wait(inbox).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            self.mark_busy();
            drop(inbox);
            self.solve(cell, solver, &loads);
            if self.died.get().is_some() {
                return;
            }
            inbox = lock(&self.inbox);
        }
    }

    /// Runs the solver once and publishes what came out.
    fn solve(&self, cell: &PlacementCell, solver: &Solver, loads: &LoadTotals) {
        let begin = Instant::now();
        let (base, current) = cell.snapshot();
        // The solver is shared by reference and nothing of ours is half-changed if it unwinds.
        let result = catch_unwind(AssertUnwindSafe(|| {
            let Some(placement) = solver(loads, &current)? else { return Ok(None) };
            let migration = MigrationPlan::between(&current, &placement)?;
            let placement = Arc::new(placement);
            Ok(Some(Offer { placement, migration, base, elapsed: begin.elapsed() }))
        }));
        let outcome = match result {
            Ok(Ok(None)) => return,
            Ok(Ok(Some(offer))) => Ok(offer),
            Ok(Err(error)) => Err(error),
            Err(panic) => {
                // The first reason stays, should a synchronous solver panic again.
                let _ = self.died.set(panic_message(&*panic));
                return;
            }
        };
        let replaced = lock(&self.outcome).replace(outcome);
        self.ready.store(true, Ordering::Release);
        drop(replaced);
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic without a message".to_owned())
}
