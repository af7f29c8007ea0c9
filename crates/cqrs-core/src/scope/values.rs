//! The typed values of a scope.

use std::any::{Any, TypeId, type_name};
use std::fmt;
use std::sync::Arc;

/// The typed values of a scope, mostly one. Cloning shares them.
#[derive(Clone, Default)]
pub(crate) struct Values {
    first: Option<Value>,
    more: Vec<Value>,
}

#[derive(Clone)]
struct Value {
    of: TypeId,
    name: &'static str,
    value: Arc<dyn Any + Send + Sync>,
}

impl Values {
    pub(crate) fn insert<T: Send + Sync + 'static>(&mut self, value: T) {
        let of = TypeId::of::<T>();
        let value = Value { of, name: type_name::<T>(), value: Arc::new(value) };
        match &mut self.first {
            None => self.first = Some(value),
            Some(first) if first.of == of => *first = value,
            Some(_) => match self.more.iter_mut().find(|known| known.of == of) {
                Some(known) => *known = value,
                None => self.more.push(value),
            },
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Value> {
        self.first.iter().chain(&self.more)
    }

    pub(crate) fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        let of = TypeId::of::<T>();
        self.iter().find(|known| known.of == of)?.value.downcast_ref()
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.iter().map(|value| value.name);
        f.debug_set().entries(names).finish()
    }
}
