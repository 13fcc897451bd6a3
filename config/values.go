package config

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// listFlag is the text of a List, to which each use of the flag adds.
type listFlag struct{ text string }

func (l *listFlag) String() string { return l.text }
func (l *listFlag) Type() string   { return "list" }
func (l *listFlag) Set(s string) error {
	if l.text != "" {
		l.text += ","
	}
	l.text += s
	return nil
}

// fromFile is the text of a file's value, if that has the setting's type. The
// error is without the value: it may be a secret.
func (f field) fromFile(raw any) (string, error) {
	zero := reflect.Zero(f.kind).Interface()
	switch raw := raw.(type) {
	case string:
		switch zero.(type) {
		case string, Bytes, time.Duration, List:
			return raw, nil
		}
	case []any:
		if _, ok := zero.(List); !ok {
			break
		}
		var texts []string
		for _, v := range raw {
			s, ok := v.(string)
			if !ok || strings.Contains(s, ",") {
				return "", errors.New("a list of strings without commas is needed")
			}
			texts = append(texts, s)
		}
		return strings.Join(texts, ","), nil
	case bool:
		if _, ok := zero.(bool); ok {
			return strconv.FormatBool(raw), nil
		}
	case int, int64, uint64, float64: // a float64 is what JSON's numbers are
		switch zero.(type) {
		case int, Bytes, float64:
			if n, ok := raw.(float64); ok {
				return strconv.FormatFloat(n, 'f', -1, 64), nil
			}
			return fmt.Sprint(raw), nil
		}
	}
	switch zero.(type) {
	case bool:
		return "", errors.New("true or false is needed, without quotes")
	case int, float64:
		return "", errors.New("a number is needed, without quotes")
	case Bytes:
		return "", errors.New("a number of bytes, or a string such as 10GiB, is needed")
	case time.Duration:
		return "", errors.New("a string such as 30s is needed")
	case List:
		return "", errors.New("a list of strings, or one with commas, is needed")
	default:
		return "", errors.New("a string is needed")
	}
}

func set(v reflect.Value, f field, text string) error {
	switch v.Interface().(type) {
	case string:
		v.SetString(text)
	case List:
		var list List
		for s := range strings.SplitSeq(text, ",") {
			if s = strings.TrimSpace(s); s != "" {
				list = append(list, s)
			}
		}
		v.Set(reflect.ValueOf(list))
	case bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is not true or false", text)
		}
		v.SetBool(b)
	case int:
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n == 0 && !f.zero {
			return fmt.Errorf("%q is not a number above 0", text)
		}
		v.SetInt(int64(n))
	case float64:
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || !(n >= 0) || n == 0 && !f.zero {
			return fmt.Errorf("%q is not a number above 0", text)
		}
		v.SetFloat(n)
	case Bytes:
		n, err := humanize.ParseBytes(text)
		if err != nil || n < 1 || n > 1<<60 {
			return fmt.Errorf("%q is not a size such as 512MiB or 10GiB", text)
		}
		v.SetInt(int64(n))
	case time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 || d == 0 && !f.zero {
			return fmt.Errorf("%q is not a duration such as 30s or 1h", text)
		}
		v.SetInt(int64(d))
	}
	return nil
}

func mask(f field, text string) string {
	if f.secret && text != "" {
		return "********"
	}
	return userinfo.ReplaceAllString(text, "://********@")
}

// userinfo is a password, or a token in its place, in a URL of a list.
var userinfo = regexp.MustCompile(`://[^/,|\s]*@`)
