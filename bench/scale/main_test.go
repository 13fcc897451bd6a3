package main

import (
	"os"
	"strings"
	"testing"
)

// The page is what the program makes of the constants and of docs/azure.md.
func TestPage(t *testing.T) {
	azure, err := os.ReadFile("../../" + azurePage)
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../" + scalePage)
	if err != nil {
		t.Fatal(err)
	}
	text, err := figures(string(azure))
	if err != nil {
		t.Fatal(err)
	}
	made, err := update(string(page), text)
	if err != nil {
		t.Fatal(err)
	}
	if made != string(page) {
		t.Errorf("%s is not what the program makes: go run ./bench/scale -w", scalePage)
	}
	for _, f := range all() {
		if !strings.Contains(text, f.name) || f.source == "" || f.value <= 0 {
			t.Errorf("%+v: it is not on the page, or has no source", f)
		}
	}
	// What the page says has to follow from the figures.
	for _, want := range []string{"| versions a second | 27.8 |", "Where it bends first", "zips kept: 20,806 GB"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not on the page", want)
		}
	}
}

// An operation that is no longer measured is an error, not free.
func TestOperationMissing(t *testing.T) {
	azure, err := os.ReadFile("../../" + azurePage)
	if err != nil {
		t.Fatal(err)
	}
	ops, err := operations(string(azure))
	if err != nil || len(ops) < 15 {
		t.Fatalf("%d operations, %v", len(ops), err)
	}
	if _, err := figures(strings.ReplaceAll(string(azure), "| claim |", "| claimed |")); err == nil || !strings.Contains(err.Error(), `"claim"`) {
		t.Errorf("without the cost of a claim: %v", err)
	}
	if _, err := update("no page", "x"); err == nil {
		t.Error("a page without a place was updated")
	}
}

func TestNumber(t *testing.T) {
	for x, want := range map[float64]string{0: "0", 0.0312: "0.031", 5.25: "5.2", 40: "40", 99.96: "100.0", 999.5: "1,000", 1234567: "1,234,567"} {
		if got := number(x); got != want {
			t.Errorf("%v: %s, want %s", x, got, want)
		}
	}
	if money(0.3) != "below $1" || money(1577.4) != "$1,577" {
		t.Errorf("%s, %s", money(0.3), money(1577.4))
	}
}
