package trust

import "time"

// Bounds on everything that comes from outside. They are chosen so that a
// repository of four million images still fits.
const (
	maxIndexBytes    = 4 << 20   // the trust index
	maxManifestBytes = 4 << 20   // the top manifest or a bins manifest
	maxTopData       = 64 << 10  // the top manifest inlined in the index
	maxRootBytes     = 512 << 10 // one root.json
	maxTimestamp     = 16 << 10  // timestamp.json
	maxSnapshot      = 8 << 20   // snapshot.json, decompressed
	maxTargets       = 1 << 20   // targets.json
	maxPolicy        = 256 << 10 // policy.yaml
	maxBin           = 16 << 20  // one bin, decompressed
	maxChange        = 64 << 20  // a change file: all roots, targets and two policies
	maxRoots         = 256       // root versions that one refresh walks
	maxState         = 64 << 20  // a file of the state directory
	maxBinBits       = 16        // at most 65,536 bins

	notInline       = 0        // for what most readers have or do not need
	maxInline       = 8 << 10  // stored bytes up to which metadata is inlined in its descriptor
	maxInlinePolicy = 16 << 10 // the same for the policy: about 200 signers
	compressAbove   = 1 << 10  // files larger than this are stored compressed

	maxEnvelopes  = 8          // envelopes kept per target, the newest per signer
	maxIndexes    = 8          // indexes that a child's entry names
	maxTombstones = 4096       // entries of the revoked list
	maxAlso       = 256        // digests that a tombstone covers beside its own
	maxReason     = 512        // bytes of a tombstone's reason
	maxRemembered = 50_000     // tombstones, and tags, that a state directory remembers
	maxEntry      = 96 << 10   // bytes of the statements of one target
	maxBinEntries = maxBin / 4 // bytes of all entries of a bin, when written
	maxCached     = 1024       // files of the blob cache
	maxDecoded    = 128        // decoded bins that a view keeps in memory

	maxSuperseded   = 50_000              // replaced manifests that a publisher remembers, to delete them
	maxInboxEntry   = 64 << 10            // bytes of one inbox bundle
	maxInboxEntries = 20_000              // entries that one publish reads
	inboxTTL        = 30 * 24 * time.Hour // an inbox statement older than this is dropped

	renewSlice = 64 // bins that one publish looks at for renewal, at least

	clockSkew = 5 * time.Minute // tolerated between the clocks of publisher and reader
	lockWait  = 30 * time.Second
)
