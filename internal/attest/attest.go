// Package attest reads and writes what signers say about images: Sigstore
// bundles v0.3 with a DSSE envelope around an in-toto Statement v1.
//
//	bundle     {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
//	            "verificationMaterial": {"publicKey": {"hint": BASE64 SHA-256 of the DER key}},
//	            "dsseEnvelope": envelope with exactly one signature}
//	envelope   {"payload": BASE64 statement, "payloadType": "application/vnd.in-toto+json",
//	            "signatures": [{"sig": BASE64}]}
//	statement  {"_type": "https://in-toto.io/Statement/v1",
//	            "subject": [{"name": REPOSITORY, "digest": {"sha256": HEX}}],
//	            "predicateType": "https://imgtrust.dev/release/v1",
//	            "predicate": {"repository": REPOSITORY, "tags": […], "created": TIME, "manifests": […], …}}
//
// Encoding is deterministic. Decoding is strict: sizes are bounded (limits.go),
// and an unknown field, a field given twice, a missing part or trailing data is
// an error that names the place. Only inside a release's predicate are unknown
// fields ignored.
//
// The package does no I/O, reads no clock and makes no trust decision:
// Envelope.Verify says that a key signed some bytes, never that it may.
// Everything here is safe for concurrent use.
package attest
