package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	dir := t.TempDir()
	settings, err := parse([]string{
		"-dir", dir, "-http-to", "127.0.0.1:1,127.0.0.1:2", "-tls-port", "5001",
		"-profile", "brief=90s", "-profile", "long=24h", "-eab", "kid=AAECAwQFBgcICQoLDA0ODw==", "-ocsp",
	}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	settings.config.ExternalAccounts["kid"] = "AAECAwQFBgcICQoLDA0ODw" // unpadded
	ctx, end := context.WithCancel(t.Context())
	defer end()
	output, ended := startRun(ctx, settings)

	var line map[string]any
	if err := json.NewDecoder(output).Decode(&line); err != nil {
		t.Fatal(err)
	}

	if line["root"] != filepath.Join(dir, "root.pem") || line["tlsPort"] != 5001.0 || line["ocsp"] == nil {
		t.Errorf("line: %v", line)
	}
	answer, err := http.Get(line["management"].(string) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Errorf("status: %s", answer.Status)
	}
	http.DefaultClient.CloseIdleConnections()
	end()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it does not end")
	}
	if _, err := os.Stat(filepath.Join(dir, "issuing-root.pem")); err != nil {
		t.Error(err)
	}
}

func startRun(ctx context.Context, s settings) (output io.Reader, ended chan error) {
	output, writer := io.Pipe()
	ended = make(chan error, 1)
	go func() {
		err := run(ctx, s, writer)
		writer.CloseWithError(err)
		ended <- err
	}()
	return output, ended
}

func TestParseErrors(t *testing.T) {
	for want, arguments := range map[string][]string{
		`argument "x"`:                    {"x"},
		"-http-port and -http-to exclude": {"-http-port", "80", "-http-to", "127.0.0.1:80"},
		"-tls-port and -tls-to exclude":   {"-tls-port", "443", "-tls-to", "127.0.0.1:443"},
		"is not name=value":               {"-eab", "kid"},
		"invalid duration":                {"-profile", "brief=soon"},
		"not defined":                     {"-no-such-flag"},
	} {
		var output strings.Builder
		if _, err := parse(arguments, &output); err == nil || !strings.Contains(output.String(), want) {
			t.Errorf("%q: %v, output %q, want %q", arguments, err, output.String(), want)
		}
	}
}
