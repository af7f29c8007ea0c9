//! Requests and responses of the registry's HTTP API as JSON, for the client.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Compatibility, RegisteredSchema, Schema, SchemaReference};
use crate::SchemaType;

/// A schema in a request.
#[derive(Serialize)]
pub(super) struct SchemaRequest<'s> {
    #[serde(rename = "schemaType")]
    schema_type: &'static str,
    schema: &'s str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    references: &'s [SchemaReference],
}

impl<'s> From<&'s Schema> for SchemaRequest<'s> {
    fn from(schema: &'s Schema) -> Self {
        Self {
            schema_type: schema.schema_type.as_str(),
            schema: &schema.text,
            references: &schema.references,
        }
    }
}

/// A response that describes a schema. Every field is optional: registries leave out different ones.
#[derive(Deserialize)]
pub(super) struct SchemaResponse {
    id: Option<u32>,
    guid: Option<Uuid>,
    version: Option<u32>,
    #[serde(rename = "schemaType")]
    schema_type: Option<String>,
    schema: Option<String>,
    references: Option<Vec<SchemaReference>>,
}

impl SchemaResponse {
    /// The schema. The API leaves out the type of Avro schemas.
    pub(super) fn schema(self) -> Option<Schema> {
        let schema_type = self.schema_type.as_deref().map_or(SchemaType::Avro, schema_type);
        let mut schema = Schema::new(schema_type, self.schema?);
        schema.references = self.references.unwrap_or_default();
        Some(schema)
    }

    /// The registered schema that a response about a version describes.
    pub(super) fn into_registered(self, subject: &str) -> Option<RegisteredSchema> {
        let (id, guid, version) = (self.id?, self.guid, self.version);
        Some(RegisteredSchema {
            subject: subject.into(),
            id,
            guid,
            version,
            schema: self.schema()?,
        })
    }

    /// The registration of `schema`, which the request held: some registries return only its id.
    pub(super) fn into_registration_of(
        self,
        subject: &str,
        schema: &Schema,
    ) -> Option<RegisteredSchema> {
        Some(RegisteredSchema {
            subject: subject.into(),
            id: self.id?,
            guid: self.guid,
            version: self.version,
            schema: schema.clone(),
        })
    }
}

fn schema_type(name: &str) -> SchemaType {
    let known = [SchemaType::Json, SchemaType::Protobuf, SchemaType::Avro];
    known.into_iter().find(|known| known.as_str() == name).unwrap_or(SchemaType::Other)
}

#[derive(Deserialize)]
pub(super) struct CompatibilityResponse {
    is_compatible: bool,
    messages: Option<Vec<String>>,
    /// SchemaRequest by Apicurio instead of `messages`.
    reason: Option<String>,
}

impl From<CompatibilityResponse> for Compatibility {
    fn from(answer: CompatibilityResponse) -> Self {
        let mut reasons = answer.messages.unwrap_or_default();
        reasons.extend(answer.reason);
        Self { is_compatible: answer.is_compatible, reasons }
    }
}

/// The body of an error response.
#[derive(Default, Deserialize)]
pub(super) struct ErrorResponse {
    pub(super) error_code: Option<u32>,
    #[serde(default)]
    pub(super) message: String,
}
