//! [`RegistryDecoder`]: a decoder hook that checks the schema of each message with the registry.

use std::sync::Arc;

use cqrs_core::broker::BoxFuture;
use cqrs_core::consume::Incoming;
use cqrs_core::service::{DecodeError, Decoded};

use super::unframe::is_void;
use super::{OnUnframed, Unframe};
use crate::{MessagePath, RegistryError, RegistryErrorKind, SchemaId, SchemaRegistry, SchemaType};

/// The policy for a message whose schema the registry does not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnUnknownSchema {
    /// It cannot be decoded: the subscription's policy for decode errors holds.
    #[default]
    Malformed,
    /// It is retried on the subscription's schedule: for a registry that is a copy of another one and may
    /// lag behind.
    Retry,
}

/// Ids are signed numbers of 32 bits in Confluent's API. JAX-RS answers a path with a larger one with a bare
/// 404, as it answers a wrong base URL: one garbled message would wait forever.
const MAX_NUMBER: u32 = i32::MAX as u32;

/// Removes the frame of each message after a check of its schema with the registry. A hook for
/// [`Subscription::decoder`](cqrs_core::Subscription::decoder); the subscription then decodes with a
/// plain deserializer.
///
/// ```no_run
/// use cqrs_core::Subscription;
/// use cqrs_schema_registry::{RegistryConfig, RegistryDecoder, SchemaRegistry};
/// # use cqrs_core::Notification;
/// # fn f<UserCreated: Notification + serde::de::DeserializeOwned>()
/// # -> Result<(), cqrs_schema_registry::RegistryError> {
///
/// let registry = SchemaRegistry::new(RegistryConfig::from_env()?)?;
/// let users = Subscription::to("user_events")
///     .group("mailer")
///     .decoder(RegistryDecoder::json(&registry).subjects(["user_events-value"]).hook())
///     .json::<UserCreated>();
/// # Ok(())
/// # }
/// ```
///
/// | what | becomes |
/// |---|---|
/// | no frame, a broken one, another message path | malformed |
/// | a schema of another language, id or subject than expected, an id above 2,147,483,647 | malformed |
/// | a subject to look under that cannot be one | malformed: the settings are wrong, and a retry is of no use |
/// | a schema that the registry does not know | malformed, or retried: [`OnUnknownSchema`] |
/// | a registry that cannot be reached, refuses the credentials, or answers nonsense | [not now](DecodeError::NotNow): the message waits |
/// | a GUID, of a registry that answers but has none | malformed |
/// | a registry that cannot parse its own schema (422) | a failure: the retry schedule holds |
/// | a tombstone; for JSON, a message without frame and body | passed on: the policies for them hold |
///
/// So an outage of any length makes no dead letters and counts as no attempt. Warnings are logged, and the
/// messages wait in their lanes, with a new request after pauses of up to 10 s. The same holds for wrong
/// settings (credentials, the base URL). Only a [`timeout`](cqrs_core::Subscription::timeout) of the
/// subscription during a request is a failed attempt.
///
/// Each schema is looked up once, and so is its place under a subject. A schema that the registry does not
/// know is looked up again after [`unknown_schema_ttl`](crate::RegistryConfig::unknown_schema_ttl). The
/// message's lane waits for the request. One request takes at most `attempts` times the number of URLs times `timeout` of
/// the [`RegistryConfig`](crate::RegistryConfig), and the waits between the attempts, of up to 2 s each;
/// one message takes one request, and one more for each subject. With one URL, one subject and the
/// defaults that is some 31 s at most.
#[derive(Debug, Clone)]
pub struct RegistryDecoder {
    registry: SchemaRegistry,
    unframe: Unframe,
    ids: Vec<SchemaId>,
    subjects: Vec<Arc<str>>,
    on_missing_schema: OnUnknownSchema,
}

impl RegistryDecoder {
    /// Takes messages of JSON Schemas.
    pub fn json(registry: &SchemaRegistry) -> Self {
        Self::new(registry, SchemaType::Json)
    }

    /// Takes messages of Protobuf schemas. Any message path is taken, unless [`path`](Self::path) says
    /// which.
    pub fn protobuf(registry: &SchemaRegistry) -> Self {
        Self::new(registry, SchemaType::Protobuf)
    }

    fn new(registry: &SchemaRegistry, schema_type: SchemaType) -> Self {
        Self {
            registry: registry.clone(),
            unframe: Unframe::new(schema_type),
            ids: Vec::new(),
            subjects: Vec::new(),
            on_missing_schema: OnUnknownSchema::Malformed,
        }
    }

    cqrs_core::setters! {
        /// Takes frames of this message path only. JSON's frames have none.
        pub fn path(path: MessagePath) { self.unframe.path = Some(path) }

        /// The policy for messages without a frame; an error by default.
        pub fn on_unframed(policy: OnUnframed) { self.unframe.on_unframed = policy }

        /// The policy for schemas that the registry does not know.
        pub fn on_unknown_schema(policy: OnUnknownSchema) { self.on_missing_schema = policy }
    }

    /// Takes these schemas only. A number and a GUID are different ids: name both where writers use both.
    #[must_use]
    pub fn ids<I: Into<SchemaId>>(mut self, ids: impl IntoIterator<Item = I>) -> Self {
        self.ids.extend(ids.into_iter().map(Into::into));
        self
    }

    /// Takes only schemas registered under one of these subjects, in any version that is not deleted.
    /// A name that no subject can have (`""`, `"."`, `".."`) makes each message malformed for which it is
    /// looked up.
    #[must_use]
    pub fn subjects<S: Into<Arc<str>>>(mut self, subjects: impl IntoIterator<Item = S>) -> Self {
        self.subjects.extend(subjects.into_iter().map(Into::into));
        self
    }

    /// The hook.
    pub fn hook(self) -> impl Fn(Incoming) -> BoxFuture<'static, Decoded> + Send + Sync + 'static {
        let decoder = Arc::new(self);
        move |message| {
            let decoder = Arc::clone(&decoder);
            Box::pin(async move { decoder.decode(message).await })
        }
    }

    /// Checks and unframes one message, as the hook does.
    ///
    /// # Errors
    /// See the table above.
    pub async fn decode(&self, mut message: Incoming) -> Decoded {
        // The JSON deserializer reports an empty message. Protobuf's would decode it as an event.
        let is_json = self.unframe.schema_type == SchemaType::Json;
        if message.is_tombstone() || is_json && is_void(&message) {
            return Ok(Some(message));
        }
        let split = self.unframe.split(&message);
        let (frame, body) = split.map_err(|error| DecodeError::malformed(error.to_string()))?;
        if let Some(frame) = frame {
            self.check(frame.id()).await?;
        }
        message.body = Some(body);
        Ok(Some(message))
    }

    async fn check(&self, id: SchemaId) -> Result<(), DecodeError> {
        if !self.ids.is_empty() && !self.ids.contains(&id) {
            return Err(DecodeError::malformed(format!(
                "the schema {id} is not one of those taken"
            )));
        }
        if matches!(id, SchemaId::Number(number) if number > MAX_NUMBER) {
            return Err(DecodeError::malformed(format!(
                "no registry gives out the schema id {id}"
            )));
        }
        let schema = self.registry.schema(id).await.map_err(|error| self.failed(error))?;
        let (found, expected) = (schema.schema_type, self.unframe.schema_type);
        if found != expected {
            let text = format!("the schema {id} is of type {found}, expected {expected}");
            return Err(DecodeError::malformed(text));
        }
        for subject in &self.subjects {
            let is_under = self.registry.is_under(id, &schema, subject).await;
            if is_under.map_err(|error| self.failed(error))? {
                return Ok(());
            }
        }
        match self.subjects.is_empty() {
            true => Ok(()),
            false => {
                let subjects = &self.subjects;
                let text =
                    format!("the schema {id} stands under none of the subjects {subjects:?}");
                Err(DecodeError::malformed(text))
            }
        }
    }

    fn failed(&self, error: RegistryError) -> DecodeError {
        match (error.kind(), self.on_missing_schema) {
            (RegistryErrorKind::NotFound, OnUnknownSchema::Malformed)
            | (RegistryErrorKind::Unsupported, _) => DecodeError::malformed(error.to_string()),
            (
                RegistryErrorKind::Connection
                | RegistryErrorKind::Authentication
                | RegistryErrorKind::Authorization
                | RegistryErrorKind::Other,
                _,
            ) => DecodeError::not_now(error),
            (RegistryErrorKind::Config, _) => DecodeError::malformed(error.to_string()),
            _ => DecodeError::failed(error),
        }
    }
}
