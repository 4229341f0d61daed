package attest

// Bounds of everything this package decodes. Encoders keep them, too, so that
// what one side writes the other side reads.
const (
	MaxBundle   = 64 << 10 // bytes of a bundle's JSON
	MaxPayload  = 46 << 10 // bytes of a payload: what fits a bundle as base64
	MaxEnvelope = 80 << 10 // bytes of an envelope's JSON: a payload and MaxSignatures signatures

	MaxSignatures = 8    // signatures of one envelope; a bundle has exactly one
	MaxSignature  = 1024 // bytes of one signature (RSA 4096 needs 512)
	MaxKeyID      = 128  // bytes of a key ID or hint
	MaxPublicKey  = 8 << 10
	MaxTlog       = 8 // transparency log entries of a bundle; they are not read

	MaxName            = 512 // bytes of a repository name
	MaxTags            = 64
	MaxManifests       = 64 // the subject and its children
	MaxAnnotations     = 64
	MaxAnnotationBytes = 8 << 10 // all keys and values together
	MaxWord            = 256     // bytes of a media type, platform or user
	MaxEntrypoint      = 64      // words
	MaxEntrypointBytes = 4 << 10

	maxNameInError = 100 // bytes of a foreign name that an error repeats

	MaxDepth = 32 // nesting of objects and arrays in any JSON document
)
