package configfile

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"raimon/internal/options"
)

// Decode sets the fields of into, a pointer to a struct, by their toml tags. A key that no field has, or a
// value of another kind, is an *Error.
func (f *File) Decode(into any) error {
	decoder := toml.NewDecoder(bytes.NewReader(f.text))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(into)
	var unknown *toml.StrictMissingError
	var broken *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		return f.unknownKey(reflect.TypeOf(into).Elem(), &unknown.Errors[0])
	case errors.As(err, &broken):
		line, _ := broken.Position()
		if kind := kindOf(reflect.TypeOf(into).Elem(), broken.Key()); kind != "" && strings.Contains(broken.Error(), "cannot decode") {
			key := broken.Key()
			return &Error{File: f.Name, Line: line, Problem: fmt.Sprintf("%s is not %s", key[len(key)-1], kind), Fix: "write " + exampleOf[kind]}
		}
	}
	if err != nil {
		return f.broken(err)
	}
	return nil
}

// unknownKey says which key was probably meant.
func (f *File) unknownKey(t reflect.Type, e *toml.DecodeError) error {
	line, _ := e.Position()
	key := e.Key()
	last := key[len(key)-1]
	section, known := sectionOf(t, key[:len(key)-1])
	in := ""
	if section != "" {
		in = " in " + section
	}
	fix := "known are " + strings.Join(known, ", ")
	if near := options.Nearest(last, known); near != "" {
		fix = fmt.Sprintf("did you mean %s?", near)
	} else if where := sectionsWith(t, "", last); len(where) > 0 {
		fix = fmt.Sprintf("%s belongs to %s", last, strings.Join(where, " or "))
	}
	return &Error{File: f.Name, Line: line, Problem: fmt.Sprintf("unknown key %q%s", last, in), Fix: fix}
}

// The kinds of values, as messages call them.
const (
	KindText   = "a text"
	KindTexts  = "a list of texts"
	KindNumber = "a number"
	KindSwitch = "true or false"
	KindTable  = "a table"
	KindTables = "a list of tables"
)

// exampleOf shows how values of each kind are written.
var exampleOf = map[string]string{
	KindText: `it in quotes, as in "text"`, KindTexts: `it in brackets, as in ["text", "text"]`, KindNumber: "it without quotes, as in 100",
	KindSwitch: "true or false, without quotes", KindTable: "it as [name], with its keys in the lines below", KindTables: "it as [[name]], with its keys in the lines below",
}

// kindOf says what the value of a key has to be; empty if there is no such key.
func kindOf(t reflect.Type, key []string) string {
	for n, part := range key {
		found := false
		for _, f := range Keys(t) {
			if found = f.Tag.Get("toml") == part; !found {
				continue
			}
			t = f.Type
			break
		}
		if !found {
			return ""
		}
		if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct && n < len(key)-1 {
			t = t.Elem()
		}
	}
	return KindOf(t)
}

// KindOf is how messages and docs call the values of a field of type t.
func KindOf(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return KindSwitch
	case reflect.Int, reflect.Uint32:
		return KindNumber
	case reflect.Struct:
		return KindTable
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct {
			return KindTables
		}
		return KindTexts
	}
	return KindText
}

// sectionOf names the table at path, as users write it, and its keys.
func sectionOf(t reflect.Type, path []string) (name string, keys []string) {
	for n, part := range path {
		for _, f := range Keys(t) {
			if f.Tag.Get("toml") == part {
				t = f.Type
				name = "[" + strings.Join(path[:n+1], ".") + "]"
				if t.Kind() == reflect.Slice {
					t, name = t.Elem(), "["+name+"]"
				}
				break
			}
		}
	}
	for _, f := range Keys(t) {
		keys = append(keys, f.Tag.Get("toml"))
	}
	return name, keys
}

// sectionsWith are the tables below t that have the key.
func sectionsWith(t reflect.Type, path, key string) (where []string) {
	for _, f := range Keys(t) {
		name := f.Tag.Get("toml")
		switch {
		case name == key && path == "":
			where = append(where, "the top of the file")
		case name == key:
			where = append(where, path)
		}
		below, left, right := f.Type, "[", "]"
		if below.Kind() == reflect.Slice {
			below, left, right = below.Elem(), "[[", "]]"
		}
		if below.Kind() == reflect.Struct {
			where = append(where, sectionsWith(below, left+strings.Trim(strings.Trim(path, "[]")+"."+name, ".")+right, key)...)
		}
	}
	return where
}

// Keys are the fields of a table that stand in the file, those of embedded structs too.
func Keys(t reflect.Type) (fields []reflect.StructField) {
	for f := range t.Fields() {
		switch {
		case f.Anonymous:
			fields = append(fields, Keys(f.Type)...)
		case f.Tag.Get("toml") != "":
			fields = append(fields, f)
		}
	}
	return fields
}
