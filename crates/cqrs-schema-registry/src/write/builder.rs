//! [`FramingBuilder`]: looks up the frame of each event before the first message.

use std::sync::Arc;

use super::{EventSchema, Framing, OnMissingSchema, SchemaSource, SubjectNaming};
use crate::{
    Frame, RegisteredSchema, RegistryError, RegistryErrorKind, SchemaRegistry, SchemaVersion,
};

/// The way a schema gets its id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Registration {
    /// It must be registered already, by a deployment. A typo is an error at start.
    #[default]
    LookUp,
    /// A missing schema is registered if the registry finds it compatible. For development.
    Auto,
}

/// The place of the frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameForm {
    /// Before the body, with the schema's number. Every reader knows this form.
    #[default]
    Prefix,
    /// Into the header [`Frame::HEADER`], with the schema's GUID, and the body stays as it is. Needs a
    /// registry that has GUIDs and readers that know this form. The value is no text, which some readers
    /// cannot handle (FastStream).
    Header,
}

/// Asks the registry for the frame of each event, before the first message.
#[derive(Debug, Clone)]
#[must_use = "call `build`"]
pub struct FramingBuilder {
    registry: SchemaRegistry,
    events: Vec<EventSchema>,
    naming: SubjectNaming,
    registration: Registration,
    form: FrameForm,
    on_missing_schema: OnMissingSchema,
}

impl Framing {
    /// Frames with the ids that `registry` gives.
    ///
    /// ```no_run
    /// use cqrs_core::MemoryBroker;
    /// use cqrs_schema_registry::{
    ///     EventSchema, FramedBroker, Framing, RegistryConfig, Schema, SchemaRegistry,
    /// };
    /// # async fn f<UserCreated: cqrs_core::Notification>()
    /// # -> Result<(), cqrs_schema_registry::RegistryError> {
    ///
    /// let registry = SchemaRegistry::new(RegistryConfig::from_env()?)?;
    /// let schema = Schema::json(r#"{"title":"UserCreated","type":"object"}"#);
    /// let framing = Framing::builder(&registry)
    ///     .event(EventSchema::of::<UserCreated>(schema)) // subject `user_events-value`
    ///     .build()
    ///     .await?;
    /// let broker = FramedBroker::new(MemoryBroker::new(), framing);
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(registry: &SchemaRegistry) -> FramingBuilder {
        FramingBuilder {
            registry: registry.clone(),
            events: Vec::new(),
            naming: SubjectNaming::TopicName,
            registration: Registration::LookUp,
            form: FrameForm::Prefix,
            on_missing_schema: OnMissingSchema::Refuse,
        }
    }
}

impl FramingBuilder {
    cqrs_core::setters! {
        /// Adds an event. One that goes to several topics is added for each; under
        /// [`RecordName`](SubjectNaming::RecordName) once, for all of them.
        pub fn event(schema: EventSchema) { self.events.push(schema) }

        /// The naming of subjects; `{topic}-value` by default.
        pub fn naming(naming: SubjectNaming) { self.naming = naming }

        /// The registration of schemas; they are only looked up by default.
        pub fn registration(registration: Registration) { self.registration = registration }

        /// The place of the frame; before the body by default.
        pub fn form(form: FrameForm) { self.form = form }

        /// The policy for messages of other events; an error by default.
        pub fn on_missing_schema(policy: OnMissingSchema) { self.on_missing_schema = policy }
    }

    /// Asks the registry.
    ///
    /// # Errors
    /// The registry's error for the first schema without an id:
    /// [`NotFound`](RegistryErrorKind::NotFound) when it is looked up and not registered under its
    /// subject, [`Config`](RegistryErrorKind::Config) when the event lacks something, or was added
    /// twice for one topic with two frames.
    pub async fn build(self) -> Result<Framing, RegistryError> {
        let mut framing = Framing::new().on_missing_schema(self.on_missing_schema);
        for event in &self.events {
            let frame = self.frame(event).await?;
            let topic = self.naming.uses_topic().then(|| Arc::clone(&event.topic));
            let before = framing.set(Arc::clone(&event.event), topic, frame.clone());
            if before.is_some_and(|before| before != frame) {
                return Err(self.ambiguous(event));
            }
        }
        Ok(framing)
    }

    fn ambiguous(&self, event: &EventSchema) -> RegistryError {
        let topic = match self.naming.uses_topic() {
            true => format!("the topic {:?}", event.topic),
            false => String::from("any topic (subjects are named by the record alone)"),
        };
        RegistryError::config(format!(
            "{:?} was added twice for {topic}, with two schemas or message paths: leave one of them",
            event.event
        ))
    }

    async fn frame(&self, event: &EventSchema) -> Result<Frame, RegistryError> {
        let subject = event.subject_name(self.naming)?;
        if let SchemaSource::Schema(schema) = &event.source {
            event.path_in(schema.schema_type)?; // before anything is registered
        }
        let found = self.find(event, &subject).await?;
        let path = event.path_in(found.schema.schema_type)?;
        let frame = match (self.form, found.guid) {
            (FrameForm::Prefix, _) => Frame::new(found.id),
            (FrameForm::Header, Some(guid)) => Frame::new(guid),
            (FrameForm::Header, None) => {
                let detail = format!(
                    "the registry has no GUID for the schema of the subject {subject:?}, which \
                     the header form needs: use the prefix form, or a registry that has GUIDs"
                );
                return Err(RegistryError::new(RegistryErrorKind::Other, detail));
            }
        };
        Ok(match path {
            Some(path) => frame.with_path(path),
            None => frame,
        })
    }

    async fn find(
        &self,
        event: &EventSchema,
        subject: &str,
    ) -> Result<RegisteredSchema, RegistryError> {
        let registry = &self.registry;
        match &event.source {
            SchemaSource::Latest(expected) => {
                let latest = registry.version(subject, SchemaVersion::Latest).await?;
                let found = latest.schema.schema_type;
                match found == *expected {
                    true => Ok(latest),
                    false => Err(RegistryError::config(format!(
                        "the latest schema of the subject {subject:?} is of type {found}, expected \
                         {expected}"
                    ))),
                }
            }
            SchemaSource::Schema(schema) => {
                let registered = match self.registration {
                    Registration::LookUp => return registry.lookup(subject, schema).await,
                    Registration::Auto => registry.register(subject, schema).await?,
                };
                // The answer to a registration may say no more than the number.
                match (self.form, registered.guid) {
                    (FrameForm::Header, None) => registry.lookup(subject, schema).await,
                    _ => Ok(registered),
                }
            }
        }
    }
}
