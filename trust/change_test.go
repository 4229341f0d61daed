package trust_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"strings"
	"testing"
	"time"

	"github.com/imgtrust/imgtrust/internal/testkit"
	"github.com/imgtrust/imgtrust/policy"
	"github.com/imgtrust/imgtrust/trust"
)

// submit proposes a change, has it signed by keys, and publishes it with the
// online key.
func submit(v *testkit.VirtualTrust, p trust.Proposal, online crypto.Signer, keys ...crypto.Signer) error {
	ctx := context.Background()
	change, err := trust.Propose(ctx, v.ClientOptions(v.State), p)
	if err != nil {
		return err
	}
	for _, k := range keys {
		checked, err := change.Check(v.RootJSON)
		if err != nil {
			return err
		}
		if change, err = checked.Sign(k); err != nil {
			return err
		}
	}
	publisher, err := trust.OpenPublisher(trust.PublisherOptions{ClientOptions: v.ClientOptions(v.State), OnlineKey: online})
	if err != nil {
		return err
	}
	_, err = publisher.Submit(ctx, change)
	return err
}

func keyID(t *testing.T, v *testkit.VirtualTrust, role string, n int) string {
	t.Helper()
	chain, err := v.Reader("").Chain(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range chain {
		if r.Role == role {
			return r.KeyIDs[n]
		}
	}
	t.Fatalf("no role %s", role)
	return ""
}

func TestCeremonies(t *testing.T) {
	tests := []struct {
		summary string
		change  func(t *testing.T, v *testkit.VirtualTrust) error
	}{
		{"a root key is replaced", func(t *testing.T, v *testkit.VirtualTrust) error {
			fresh := testkit.Key(t)
			p := trust.Proposal{Root: trust.KeyChange{Add: []crypto.PublicKey{fresh.Public()}, Remove: []string{keyID(t, v, "root", 0)[:8]}}}
			return submit(v, p, v.Online, v.Root[0], v.Root[1], fresh)
		}},
		{"the targets key is replaced", func(t *testing.T, v *testkit.VirtualTrust) error {
			fresh := testkit.Key(t)
			p := trust.Proposal{Targets: trust.KeyChange{Add: []crypto.PublicKey{fresh.Public()}, Remove: []string{keyID(t, v, "targets", 0)}}}
			return submit(v, p, v.Online, v.Root[0], v.Root[1], fresh)
		}},
		{"the online key is replaced, and every bin signed anew", func(t *testing.T, v *testkit.VirtualTrust) error {
			fresh := testkit.Key(t)
			err := submit(v, trust.Proposal{Online: fresh.Public()}, fresh, v.Root[0], v.Root[1], v.Targets[0])
			v.Online = fresh
			return err
		}},
		{"the lives get shorter", func(t *testing.T, v *testkit.VirtualTrust) error {
			p := trust.Proposal{Expires: map[string]time.Duration{"bins": 24 * time.Hour, "timestamp": time.Hour, "targets": 48 * time.Hour}}
			return submit(v, p, v.Online, v.Root[0], v.Root[1], v.Targets[0])
		}},
		{"there are more bins", func(t *testing.T, v *testkit.VirtualTrust) error {
			return submit(v, trust.Proposal{ExpectedImages: 10_000}, v.Online, v.Targets[0])
		}},
		{"the inbox moves", func(t *testing.T, v *testkit.VirtualTrust) error {
			v.Inbox = v.Host + "/elsewhere"
			return submit(v, trust.Proposal{Inbox: v.Inbox}, v.Online, v.Root[0], v.Root[1])
		}},
		{"root and targets are renewed", func(t *testing.T, v *testkit.VirtualTrust) error {
			return submit(v, trust.Proposal{RenewRoot: true, RenewTargets: true}, v.Online, v.Root[0], v.Root[1], v.Targets[0])
		}},
		{"targets have expired, and are renewed", func(t *testing.T, v *testkit.VirtualTrust) error {
			v.Clock.Add(91 * 24 * time.Hour)
			return submit(v, trust.Proposal{RenewTargets: true}, v.Online, v.Targets[0])
		}},
		{"root keys of every type", func(t *testing.T, v *testkit.VirtualTrust) error {
			_, ed, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				return err
			}
			p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
			if err != nil {
				return err
			}
			pss, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				return err
			}
			keys := []crypto.PublicKey{ed.Public(), p384.Public(), pss.Public()}
			p := trust.Proposal{Root: trust.KeyChange{Add: keys, Threshold: 5}, Targets: trust.KeyChange{Add: keys, Threshold: 4}}
			return submit(v, p, v.Online, v.Root[0], v.Root[1], v.Targets[0], ed, p384, pss)
		}},
		{"five changes follow each other", func(t *testing.T, v *testkit.VirtualTrust) error {
			for range 5 {
				fresh := testkit.Key(t)
				p := trust.Proposal{Root: trust.KeyChange{Add: []crypto.PublicKey{fresh.Public()}, Remove: []string{keyID(t, v, "root", 0)}}}
				if err := submit(v, p, v.Online, v.Root[0], v.Root[1], fresh); err != nil {
					return err
				}
				v.Root = []*ecdsa.PrivateKey{v.Root[1], fresh}
			}
			return nil
		}},
	}
	for _, test := range tests {
		t.Run(test.summary, func(t *testing.T) {
			ctx := context.Background()
			v := testkit.NewVirtualTrust(t)
			before := v.List(v.Host+"/app/web", "v1", "one", "ci")
			state := t.TempDir()
			if _, err := v.Reader(state).LookupDigest(ctx, v.Host+"/app/web", before.Digest); err != nil {
				t.Fatal(err)
			}
			if err := test.change(t, v); err != nil {
				t.Fatal(err)
			}
			readers := map[string]*trust.Client{"with state": v.Reader(state), "cold": v.Reader("")}
			for name, c := range readers {
				if _, err := c.LookupDigest(ctx, v.Host+"/app/web", before.Digest); err != nil {
					t.Errorf("a reader %s: %v", name, err)
				}
			}
			after := v.List(v.Host+"/app/web", "v2", "two", "ci")
			for name, c := range readers {
				if err := c.Refresh(ctx); err != nil {
					t.Fatalf("a reader %s: %v", name, err)
				}
				if _, err := c.LookupDigest(ctx, v.Host+"/app/web", after.Digest); err != nil {
					t.Errorf("a reader %s, after the next publish: %v", name, err)
				}
			}
		})
	}
}

func TestChangesRefused(t *testing.T) {
	tests := []struct {
		summary string
		change  func(t *testing.T, v *testkit.VirtualTrust) error
		code    policy.Code // "" for a mistake in the question
		says    string
	}{
		{"one stolen root key of two", func(t *testing.T, v *testkit.VirtualTrust) error {
			thief := testkit.Key(t)
			return submit(v, trust.Proposal{Root: trust.KeyChange{Add: []crypto.PublicKey{thief.Public()}}}, v.Online, v.Root[0])
		}, policy.ThresholdNotMet, "1 more of the present root"},
		{"a policy that the targets key has not signed", func(t *testing.T, v *testkit.VirtualTrust) error {
			return submit(v, trust.Proposal{Policy: []byte(testkit.Policy(t, v.Host, v.Signers))}, v.Online)
		}, policy.ThresholdNotMet, "targets"},
		{"a key that has no part in it", func(t *testing.T, v *testkit.VirtualTrust) error {
			return submit(v, trust.Proposal{RenewTargets: true}, v.Online, testkit.Key(t))
		}, policy.Unavailable, "no part"},
		{"a threshold above the keys", func(t *testing.T, v *testkit.VirtualTrust) error {
			return submit(v, trust.Proposal{Root: trust.KeyChange{Threshold: 3}}, v.Online, v.Root[0], v.Root[1])
		}, policy.Unavailable, "nobody could sign it again"},
		{"a key type that clients cannot read", func(t *testing.T, v *testkit.VirtualTrust) error {
			k, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			return submit(v, trust.Proposal{Root: trust.KeyChange{Add: []crypto.PublicKey{k.Public()}}}, v.Online, v.Root[0], v.Root[1])
		}, policy.Unavailable, "not supported"},
		{"an online key that is replaced, with the old one", func(t *testing.T, v *testkit.VirtualTrust) error {
			return submit(v, trust.Proposal{Online: testkit.Key(t).Public()}, v.Online, v.Root[0], v.Root[1], v.Targets[0])
		}, policy.Unavailable, "not the online key"},
		{"an online key that is a root key", func(t *testing.T, v *testkit.VirtualTrust) error {
			return submit(v, trust.Proposal{Online: v.Root[0].Public()}, v.Root[0], v.Root[0], v.Root[1], v.Targets[0])
		}, policy.Unavailable, "as well"},
		{"a change made before another one", func(t *testing.T, v *testkit.VirtualTrust) error {
			ctx := context.Background()
			change, err := trust.Propose(ctx, v.ClientOptions(v.State), trust.Proposal{RenewTargets: true})
			if err != nil {
				t.Fatal(err)
			}
			checked, err := change.Check(v.RootJSON)
			if err != nil {
				t.Fatal(err)
			}
			if change, err = checked.Sign(v.Targets[0]); err != nil {
				t.Fatal(err)
			}
			if err := submit(v, trust.Proposal{RenewTargets: true}, v.Online, v.Targets[0]); err != nil {
				t.Fatal(err)
			}
			p, err := trust.OpenPublisher(trust.PublisherOptions{ClientOptions: v.ClientOptions(v.State), OnlineKey: v.Online})
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Submit(ctx, change)
			return err
		}, policy.MetadataInvalid, "have changed since"},
		{"the root.json of another repository", func(t *testing.T, v *testkit.VirtualTrust) error {
			change, err := trust.Propose(context.Background(), v.ClientOptions(v.State), trust.Proposal{RenewRoot: true})
			if err != nil {
				t.Fatal(err)
			}
			_, err = change.Check(testkit.NewVirtualTrust(t).RootJSON)
			return err
		}, policy.UntrustedRoot, "another trust repository"},
	}
	for _, test := range tests {
		t.Run(test.summary, func(t *testing.T) {
			v := testkit.NewVirtualTrust(t)
			err := test.change(t, v)
			if err == nil || trust.CodeOf(err) != test.code || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("%v, code %s; want %s and %q", err, trust.CodeOf(err), test.code, test.says)
			}
			if _, err := v.Reader("").Chain(context.Background()); err != nil {
				t.Errorf("afterwards no reader can follow: %v", err)
			}
		})
	}
}

func TestStagedInit(t *testing.T) {
	ctx := context.Background()
	r := testkit.NewRegistry(t)
	alice, bob, carol, online := testkit.Key(t), testkit.Key(t), testkit.Key(t), testkit.Key(t)
	signers := map[string]*ecdsa.PrivateKey{"ci": testkit.Key(t), "security": testkit.Key(t)}
	change, err := trust.NewChange(trust.InitOptions{
		Repository: r.Host + "/trust", RootPublic: []crypto.PublicKey{alice.Public(), bob.Public()}, RootThreshold: 2,
		TargetsPublic: []crypto.PublicKey{carol.Public()}, OnlinePublic: online.Public(), Policy: []byte(testkit.Policy(t, r.Host, signers)),
	})
	if err != nil {
		t.Fatal(err)
	}
	options := trust.CreateOptions{Registry: r.Client, OnlineKey: online}
	copies := make([]trust.Change, 0, 3)
	for _, k := range []crypto.Signer{alice, bob, carol} {
		if _, err := trust.Create(ctx, change, options); trust.CodeOf(err) != policy.ThresholdNotMet {
			t.Fatalf("made with too few signatures: %v", err)
		}
		checked, err := change.Check(nil)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := checked.Sign(k)
		if err != nil {
			t.Fatal(err)
		}
		copies = append(copies, signed)
	}
	for _, c := range copies {
		data, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := trust.ParseChange(data)
		if err != nil {
			t.Fatal(err)
		}
		if change, err = change.Merge(parsed); err != nil {
			t.Fatal(err)
		}
	}
	made, err := trust.Create(ctx, change, options)
	if err != nil {
		t.Fatal(err)
	}
	client, err := trust.Open(trust.ClientOptions{Repository: r.Host + "/trust", Root: made.Root, Registry: r.Client})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
}
