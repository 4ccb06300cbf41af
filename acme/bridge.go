package acme

import (
	"context"
	"log/slog"
	"net/http"

	"go.uber.org/zap/zapcore"
)

// bridge takes what certmagic logs. All of it goes to our log at debug level: what people have to know,
// the keeper of a name says once.
type bridge struct {
	log    *slog.Logger
	fields []zapcore.Field
	// heard is told of each answer of the CA. The HTTP client of certmagic cannot be replaced; that it
	// logs each answer is the only way to its Retry-After.
	heard func(status int, header http.Header)
}

// Enabled implements zapcore.LevelEnabler.
func (b *bridge) Enabled(zapcore.Level) bool { return true }

// With implements zapcore.Core.
func (b *bridge) With(fields []zapcore.Field) zapcore.Core {
	with := *b
	with.fields = append(b.fields[:len(b.fields):len(b.fields)], fields...)
	return &with
}

// Check implements zapcore.Core.
func (b *bridge) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return checked.AddCore(entry, b)
}

// Write implements zapcore.Core.
func (b *bridge) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	var status int
	var header http.Header
	for _, f := range fields {
		switch f.Key {
		case "status_code":
			status = int(f.Integer)
		case "response_headers":
			header, _ = f.Interface.(http.Header)
		}
	}
	if status != 0 && header != nil {
		b.heard(status, header)
		return nil // its fields hold nonces and whole headers
	}
	if !b.log.Enabled(context.Background(), slog.LevelDebug) {
		return nil
	}
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range append(b.fields[:len(b.fields):len(b.fields)], fields...) {
		f.AddTo(encoder)
	}
	attrs := make([]slog.Attr, 0, len(encoder.Fields))
	for key, value := range encoder.Fields {
		attrs = append(attrs, slog.Any(key, value))
	}
	b.log.LogAttrs(context.Background(), slog.LevelDebug, "certmagic: "+entry.Message, slog.Any("detail", slog.GroupValue(attrs...)))
	return nil
}

// Sync implements zapcore.Core.
func (b *bridge) Sync() error { return nil }
