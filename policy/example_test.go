package policy_test

import (
	"fmt"

	"github.com/imgtrust/imgtrust/policy"
)

func ExampleParse() {
	p, err := policy.Parse("policy.yaml", []byte(`apiVersion: imgtrust.dev/v1
kind: Policy
signers:
  payments-ci:
    key: |
      -----BEGIN PUBLIC KEY-----
      MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
      -----END PUBLIC KEY-----
rules:
  - images: ["registry.example.com/payments/**"]
    signatures: {threshold: 1, from: [payments-ci]}
`))
	if err != nil {
		fmt.Println(err)
		return
	}
	rule, pattern, _ := p.Match("registry.example.com/payments/api")
	fmt.Println(rule.Name, pattern, rule.Threshold, rule.From)
	// Output: rules[0] registry.example.com/payments/** 1 [payments-ci]
}

func ExampleParse_error() {
	_, err := policy.Parse("policy.yaml", []byte("apiVersion: imgtrust.dev/v1\nkind: Policy\nrule: []\n"))
	fmt.Println(err)
	// Output: policy.yaml:3:1: unknown field "rule" in the policy (known: apiVersion, kind, signers, revokers, deny, rules)
}
