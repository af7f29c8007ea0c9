//! [`Cache`]: schemas by id, with one request per id at a time; used by the registry's client.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cqrs_core::broker::BoxFuture;
use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};
use tokio::time::Instant;

use super::RegistryError;
use super::RegistryErrorKind::{NotFound, Unsupported};

type Loaded<V> = Result<V, RegistryError>;
type Load<V> = BoxFuture<'static, Loaded<V>>;

/// Answers that never change, at most `capacity` of them; the least recently used is evicted.
///
/// Concurrent requests for a key share one load and its result, also an error. A load goes on while one of
/// them waits. Errors are not kept, except the answer that there is no such schema, which is kept for
/// `unknown_ttl` and evicted first.
pub(super) struct Cache<K, V> {
    slots: Arc<Mutex<Slots<K, V>>>,
    capacity: usize,
}

struct Slots<K, V> {
    of: HashMap<K, Slot<V>>,
    /// Counts the reads: what was read with a smaller count was read earlier.
    clock: u64,
    unknown_ttl: Duration,
}

enum Slot<V> {
    Known {
        value: V,
        used: u64,
    },
    Unknown {
        error: RegistryError,
        since: Instant,
    },
    /// Weak, so that a load ends with its last waiter.
    Loading(WeakShared<Load<V>>),
}

impl<K, V> Cache<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(capacity: usize, unknown_ttl: Duration) -> Self {
        let slots = Slots { of: HashMap::new(), clock: 0, unknown_ttl };
        Self { slots: Arc::new(Mutex::new(slots)), capacity: capacity.max(1) }
    }

    /// The value of `key`, loaded by `load` when it is not known.
    pub(super) async fn get(&self, key: K, load: impl FnOnce() -> Load<V>) -> Loaded<V> {
        let loading = match self.find(key, load) {
            Found::Known(value) => return Ok(value),
            Found::Unknown(error) => return Err(error),
            Found::Loading(loading) => loading,
        };
        loading.await
    }

    fn find(&self, key: K, load: impl FnOnce() -> Load<V>) -> Found<V> {
        let mut slots = lock(&self.slots);
        let slots = &mut *slots;
        slots.clock += 1;
        let now = slots.clock;
        match slots.of.get_mut(&key) {
            Some(Slot::Known { value, used }) => {
                *used = now;
                return Found::Known(value.clone());
            }
            Some(Slot::Unknown { error, since }) => {
                if since.elapsed() < slots.unknown_ttl {
                    return Found::Unknown(error.clone());
                }
            }
            Some(Slot::Loading(weak)) => {
                if let Some(loading) = weak.upgrade() {
                    return Found::Loading(loading);
                }
            }
            None => {
                if slots.of.len() >= self.capacity {
                    slots.evict();
                }
            }
        }
        let (load, all, of) = (load(), Arc::clone(&self.slots), key.clone());
        let loading = async move {
            let loaded = load.await;
            lock(&all).end(of, &loaded);
            loaded
        };
        let loading = loading.boxed().shared();
        if let Some(weak) = loading.downgrade() {
            slots.of.insert(key, Slot::Loading(weak));
        }
        Found::Loading(loading)
    }

    /// Forgets the unknown keys: a new schema is registered.
    pub(super) fn forget_unknown(&self) {
        lock(&self.slots).of.retain(|_, slot| !matches!(slot, Slot::Unknown { .. }));
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.slots).of.len()
    }
}

enum Found<V> {
    Known(V),
    Unknown(RegistryError),
    Loading(Shared<Load<V>>),
}

impl<K: Clone + Eq + Hash, V: Clone> Slots<K, V> {
    fn end(&mut self, key: K, loaded: &Loaded<V>) {
        match loaded {
            // Not restored when it was evicted in between.
            Ok(value) => {
                let used = self.clock;
                if let Some(slot) = self.of.get_mut(&key) {
                    *slot = Slot::Known { value: value.clone(), used };
                }
            }
            Err(error)
                if matches!(error.kind(), NotFound | Unsupported)
                    && !self.unknown_ttl.is_zero() =>
            {
                if let Some(slot) = self.of.get_mut(&key) {
                    *slot = Slot::Unknown { error: error.clone(), since: Instant::now() };
                }
            }
            Err(_) => drop(self.of.remove(&key)),
        }
    }

    fn evict(&mut self) {
        let age = |slot: &Slot<V>| match slot {
            Slot::Known { used, .. } => (1, *used),
            Slot::Unknown { .. } => (0, 1),
            Slot::Loading(weak) if weak.upgrade().is_none() => (0, 0),
            Slot::Loading(_) => (2, 0),
        };
        if let Some(key) = self.of.iter().min_by_key(|(_, slot)| age(slot)).map(|(key, _)| key) {
            let key = key.clone();
            self.of.remove(&key);
        }
    }
}

/// Nothing panics while it is held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures_util::future::join_all;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::RegistryErrorKind;

    const UNKNOWN_TTL: Duration = Duration::from_secs(10);

    fn cache(capacity: usize) -> Cache<u32, u32> {
        Cache::new(capacity, UNKNOWN_TTL)
    }

    #[derive(Clone, Default)]
    struct Loads(Arc<AtomicUsize>);

    impl Loads {
        fn slowly(&self, end: Loaded<u32>) -> impl FnOnce() -> Load<u32> + use<> {
            let loads = Arc::clone(&self.0);
            move || {
                loads.fetch_add(1, Ordering::SeqCst);
                async move {
                    sleep(Duration::from_secs(1)).await;
                    end
                }
                .boxed()
            }
        }

        fn count(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_lookups_share_one_load() {
        let (cache, loads) = (cache(10), Loads::default());
        let all = join_all((0..50).map(|_| cache.get(1, loads.slowly(Ok(7))))).await;
        assert!(all.into_iter().all(|loaded| loaded.unwrap() == 7));
        assert_eq!(cache.get(1, loads.slowly(Ok(8))).await.unwrap(), 7);
        assert_eq!(loads.count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_is_shared_and_not_kept() {
        let (cache, loads) = (cache(10), Loads::default());
        let error = || Err(RegistryError::config("x"));
        let all = join_all((0..50).map(|_| cache.get(1, loads.slowly(error())))).await;
        assert!(all.into_iter().all(|loaded| loaded.is_err()));
        assert_eq!((loads.count(), cache.len()), (1, 0));
        assert_eq!(cache.get(1, loads.slowly(Ok(7))).await.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_is_kept_for_a_while() {
        let (cache, loads) = (cache(10), Loads::default());
        let unknown = || Err(RegistryError::new(RegistryErrorKind::NotFound, "x"));
        for _ in 0..50 {
            cache.get(1, loads.slowly(unknown())).await.unwrap_err();
        }
        assert_eq!((loads.count(), cache.len()), (1, 1));
        tokio::time::advance(UNKNOWN_TTL).await;
        assert_eq!(cache.get(1, loads.slowly(Ok(7))).await.unwrap(), 7);
        assert_eq!((loads.count(), cache.len()), (2, 1));
        cache.get(2, loads.slowly(unknown())).await.unwrap_err();
        cache.forget_unknown();
        assert_eq!(cache.get(2, loads.slowly(Ok(8))).await.unwrap(), 8);
        assert_eq!(cache.get(1, loads.slowly(Ok(9))).await.unwrap(), 7, "still known");
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_id_evicts_no_known_schema() {
        let (cache, loads) = (cache(10), Loads::default());
        for key in 0..9 {
            cache.get(key, loads.slowly(Ok(key))).await.unwrap();
        }
        for key in 100..200 {
            let unknown = Err(RegistryError::new(RegistryErrorKind::NotFound, "x"));
            cache.get(key, loads.slowly(unknown)).await.unwrap_err();
        }
        assert_eq!((loads.count(), cache.len()), (109, 10));
        for key in 0..9 {
            cache.get(key, loads.slowly(Ok(key))).await.unwrap();
        }
        assert_eq!(loads.count(), 109, "all are known");
    }

    #[tokio::test(start_paused = true)]
    async fn load_outlives_its_first_waiter_but_not_its_last() {
        let (cache, loads) = (cache(10), Loads::default());
        let half = Duration::from_millis(500);
        let first = timeout(half, cache.get(1, loads.slowly(Ok(7))));
        let (first, second) = tokio::join!(first, cache.get(1, loads.slowly(Ok(8))));
        assert!(first.is_err());
        assert_eq!((second.unwrap(), loads.count()), (7, 1));

        timeout(half, cache.get(2, loads.slowly(Ok(7)))).await.unwrap_err();
        assert_eq!(cache.get(2, loads.slowly(Ok(8))).await.unwrap(), 8, "begun anew");
    }

    #[tokio::test(start_paused = true)]
    async fn least_recently_used_is_evicted() {
        let (cache, loads) = (cache(2), Loads::default());
        for key in [1, 2, 1, 3] {
            cache.get(key, loads.slowly(Ok(key))).await.unwrap();
        }
        assert_eq!((loads.count(), cache.len()), (3, 2));
        cache.get(1, loads.slowly(Ok(9))).await.unwrap();
        assert_eq!(loads.count(), 3, "1 was used last");
        cache.get(2, loads.slowly(Ok(2))).await.unwrap();
        assert_eq!((loads.count(), cache.len()), (4, 2));
    }
}
