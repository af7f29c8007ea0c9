use std::any::{Any, TypeId, type_name};
use std::fmt;
use std::sync::Arc;

use crate::type_map::TypeIdMap;

/// Typed values, shared with child scopes and copied on write. Allocates on the first insert.
#[derive(Clone, Default)]
pub(crate) struct Values(Option<Arc<TypeIdMap<Value>>>);

#[derive(Clone)]
struct Value {
    name: &'static str,
    value: Arc<dyn Any + Send + Sync>,
}

impl Values {
    pub(crate) fn insert<T: Send + Sync + 'static>(&mut self, value: T) {
        let map = Arc::make_mut(self.0.get_or_insert_default());
        map.insert(TypeId::of::<T>(), Value { name: type_name::<T>(), value: Arc::new(value) });
    }

    pub(crate) fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.0.as_ref()?.get(&TypeId::of::<T>())?.value.downcast_ref()
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().flat_map(|map| map.values().map(|value| value.name));
        f.debug_set().entries(names).finish()
    }
}
