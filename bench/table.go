package main

import (
	"strings"
	"unicode/utf8"
)

// table is a Markdown table, its header first.
type table [][]string

func (t *table) add(row ...string) { *t = append(*t, row) }

// String pads the columns, so that the table reads well as text too.
func (t table) String() string {
	if len(t) == 0 {
		return ""
	}
	widths := make([]int, len(t[0]))
	for _, row := range t {
		for i := range widths {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell(row, i)))
		}
	}
	var b strings.Builder
	line := func(text func(i int) string, pad string) {
		b.WriteString("|")
		for i, w := range widths {
			s := text(i)
			b.WriteString(" " + s + strings.Repeat(pad, w-utf8.RuneCountInString(s)) + " |")
		}
		b.WriteString("\n")
	}
	for n, row := range t {
		line(func(i int) string { return cell(row, i) }, " ")
		if n == 0 {
			line(func(int) string { return "" }, "-")
		}
	}
	return b.String()
}

// cell is the text of a column, "" when the row is short, with nothing in it
// that would end the cell.
func cell(row []string, i int) string {
	if i >= len(row) {
		return ""
	}
	return strings.NewReplacer("|", `\|`, "\n", " ").Replace(row[i])
}
