use std::any::{Any, TypeId, type_name};
use std::fmt;
use std::sync::Arc;

/// Typed values, of which a scope has few. Cloning shares them. Allocates on the first insert.
#[derive(Clone, Default)]
pub(crate) struct Values(Vec<Value>);

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
        match self.0.iter_mut().find(|known| known.of == of) {
            Some(known) => *known = value,
            None => self.0.push(value),
        }
    }

    pub(crate) fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        let of = TypeId::of::<T>();
        self.0.iter().find(|known| known.of == of)?.value.downcast_ref()
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().map(|value| value.name);
        f.debug_set().entries(names).finish()
    }
}
