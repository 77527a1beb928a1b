// Makes a model in a store with Go's own encoder, from a request and a GGUF's facts.
//
// Structures and order of layers as in ollama v0.33.0-rc2: manifest/manifest.go, manifest/layer.go,
// types/model/config.go, api/types.go, server/create.go.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
)

type layer struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	From      string `json:"from,omitempty"`
	Name      string `json:"name,omitempty"`
}

type manifest struct {
	SchemaVersion int     `json:"schemaVersion"`
	MediaType     string  `json:"mediaType"`
	Config        layer   `json:"config"`
	Layers        []layer `json:"layers"`
}

type config struct {
	ModelFormat   string   `json:"model_format"`
	ModelFamily   string   `json:"model_family"`
	ModelFamilies []string `json:"model_families"`
	ModelType     string   `json:"model_type"`
	FileType      string   `json:"file_type"`
	Renderer      string   `json:"renderer,omitempty"`
	Parser        string   `json:"parser,omitempty"`
	Requires      string   `json:"requires,omitempty"`
	RemoteHost    string   `json:"remote_host,omitempty"`
	RemoteModel   string   `json:"remote_model,omitempty"`
	Capabilities  []string `json:"capabilities,omitempty"`
	ContextLen    int      `json:"context_length,omitempty"`
	EmbedLen      int      `json:"embedding_length,omitempty"`
	BaseName      string   `json:"base_name,omitempty"`
	Draft         *int     `json:"draft,omitempty"`
	Architecture  string   `json:"architecture"`
	OS            string   `json:"os"`
}

type message struct {
	Role      string   `json:"role"`
	Content   string   `json:"content"`
	Thinking  string   `json:"thinking,omitempty"`
	Images    [][]byte `json:"images,omitempty"`
	ToolCalls []any    `json:"tool_calls,omitempty"`
	ToolName  string   `json:"tool_name,omitempty"`
}

type request struct {
	Template   string         `json:"template,omitempty"`
	License    []string       `json:"license,omitempty"`
	System     string         `json:"system,omitempty"`
	Parameters map[string]any `json:"parameters,omitempty"`
	Messages   []message      `json:"messages,omitempty"`
	Requires   string         `json:"requires,omitempty"`
}

// One model to make; what a GGUF says is given, as another program read it.
type order struct {
	Request    string `json:"request"`
	Gguf       string `json:"gguf"`
	Store      string `json:"store"`
	Place      string `json:"place"`
	Family     string `json:"family"`
	FileType   string `json:"file_type"`
	Parameters uint64 `json:"parameters"`
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func encoded(value any) []byte {
	var buffer bytes.Buffer
	check(json.NewEncoder(&buffer).Encode(value))
	return buffer.Bytes()
}

func human(count uint64) string {
	scaled := func(unit float64, letter, form string) string {
		number := float64(count) / unit
		if number == math.Floor(number) {
			form = "%.0f"
		}
		return fmt.Sprintf(form+letter, number)
	}
	switch {
	case count >= 1e9:
		return scaled(1e9, "B", "%.1f")
	case count >= 1e6:
		return scaled(1e6, "M", "%.2f")
	case count >= 1e3:
		return scaled(1e3, "K", "%.0f")
	}
	return fmt.Sprint(count)
}

func (o order) add(kind string, data []byte) layer {
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	path := filepath.Join(o.Store, "blobs", "sha256-"+sum)
	check(os.MkdirAll(filepath.Dir(path), 0o755))
	check(os.WriteFile(path, data, 0o644))
	return layer{MediaType: kind, Digest: "sha256:" + sum, Size: int64(len(data))}
}

func (o order) make() {
	const image = "application/vnd.ollama.image."
	text, err := os.ReadFile(o.Request)
	check(err)
	var said request
	check(json.Unmarshal(text, &said))
	weights, err := os.ReadFile(o.Gguf)
	check(err)

	layers := []layer{o.add(image+"model", weights)}
	if said.Template != "" {
		layers = append(layers, o.add(image+"template", []byte(said.Template)))
	}
	if said.System != "" {
		layers = append(layers, o.add(image+"system", []byte(said.System)))
	}
	for _, license := range said.License {
		layers = append(layers, o.add(image+"license", []byte(license)))
	}
	if len(said.Parameters) > 0 {
		layers = append(layers, o.add(image+"params", encoded(said.Parameters)))
	}
	if len(said.Messages) > 0 {
		layers = append(layers, o.add(image+"messages", encoded(said.Messages)))
	}
	settings := o.add("application/vnd.docker.container.image.v1+json", encoded(config{
		ModelFormat:   "gguf",
		ModelFamily:   o.Family,
		ModelFamilies: []string{o.Family},
		ModelType:     human(o.Parameters),
		FileType:      o.FileType,
		Requires:      said.Requires,
		Architecture:  "amd64",
		OS:            "linux",
	}))
	path := filepath.Join(o.Store, "manifests", o.Place)
	check(os.MkdirAll(filepath.Dir(path), 0o755))
	check(os.WriteFile(path, encoded(manifest{
		SchemaVersion: 2,
		MediaType:     "application/vnd.docker.distribution.manifest.v2+json",
		Config:        settings,
		Layers:        layers,
	}), 0o644))
}

// What `ollama show` and POST /api/show print of parameters: server/routes.go, GetModelInfo.
func shown(parameters map[string]any) string {
	var lines []string
	for name, value := range parameters {
		values, several := value.([]any)
		if !several {
			values = []any{value}
		}
		for _, one := range values {
			lines = append(lines, fmt.Sprintf("%-*s %#v", 30, name, one))
		}
	}
	return strings.Join(lines, "\n")
}

// Without arguments: orders in, one a line. With `encode`: JSON values in, Go's encoding of each
// out. With `human`: numbers in, what Ollama would show for each out. With `show`: parameters in,
// what it would show of them out, as JSON.
func main() {
	input := json.NewDecoder(os.Stdin)
	for {
		var err error
		if len(os.Args) == 1 {
			var wanted order
			if err = input.Decode(&wanted); err == nil {
				wanted.make()
			}
		} else if os.Args[1] == "human" {
			var count uint64
			if err = input.Decode(&count); err == nil {
				fmt.Println(human(count))
			}
		} else if os.Args[1] == "show" {
			var value map[string]any
			if err = input.Decode(&value); err == nil {
				_, err = os.Stdout.Write(encoded(shown(value)))
			}
		} else {
			var value any
			if err = input.Decode(&value); err == nil {
				_, err = os.Stdout.Write(encoded(value))
			}
		}
		if err == io.EOF {
			return
		}
		check(err)
	}
}
