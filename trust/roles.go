package trust

import (
	"crypto"
	"crypto/sha256"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// lifetime is how long a role that is signed now shall live: half of the
// longest that root allows.
func (id identity) lifetime(kind string) time.Duration {
	return time.Duration(id.Lifetimes[kind]) * time.Second / 2
}

// named is the identity of a role of the repository of id.
func (id identity) named(role string) identity {
	return identity{Repository: id.Repository, Role: role}
}

// signBin signs a bin anew under a version and prepares it for storage.
func signBin(bin *metadata.Metadata[metadata.TargetsType], id identity, name string, version int64, now time.Time, online crypto.Signer) (file, error) {
	bin.Signed.Version = version
	bin.Signed.Expires = now.Add(id.lifetime("bins"))
	bin.Signed.UnrecognizedFields = identityFields(id.named(name))
	if err := signRole(bin, online); err != nil {
		return file{}, err
	}
	data, err := bin.ToBytes(false)
	if err != nil {
		return file{}, err
	}
	return newFile(versioned(version, name), metadataType, data)
}

func signSnapshot(id identity, version int64, meta map[string]*metadata.MetaFiles, revoked []Tombstone, now time.Time, online crypto.Signer) (*metadata.SnapshotType, []byte, error) {
	m := metadata.Snapshot(now.Add(id.lifetime(metadata.SNAPSHOT)))
	m.Signed.Version, m.Signed.Meta = version, meta
	self := id.named(metadata.SNAPSHOT)
	if revoked == nil {
		revoked = []Tombstone{}
	}
	self.Revoked = &revoked
	m.Signed.UnrecognizedFields = identityFields(self)
	if err := signRole(m, online); err != nil {
		return nil, nil, err
	}
	data, err := m.ToBytes(false)
	return &m.Signed, data, err
}

func signTimestamp(id identity, life time.Duration, version, snapshotVersion int64, snapshot []byte, now time.Time, online crypto.Signer) (*metadata.TimestampType, []byte, error) {
	longest := id.lifetime(metadata.TIMESTAMP)
	if life == 0 || life > longest {
		life = longest
	}
	m := metadata.Timestamp(now.Add(life))
	sum := sha256.Sum256(snapshot)
	file := metadata.MetaFile(snapshotVersion)
	file.Length, file.Hashes = int64(len(snapshot)), metadata.Hashes{"sha256": sum[:]}
	m.Signed.Version = version
	m.Signed.Meta = map[string]*metadata.MetaFiles{"snapshot.json": file}
	self := id.named(metadata.TIMESTAMP)
	self.Published = now
	m.Signed.UnrecognizedFields = identityFields(self)
	if err := signRole(m, online); err != nil {
		return nil, nil, err
	}
	data, err := m.ToBytes(false)
	return &m.Signed, data, err
}
