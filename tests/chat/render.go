// Renders conversations as Ollama does with a TEMPLATE, on Go's own text/template.
//
// On standard input: [{"template": "...", "request": {"messages": [...], "tools": [...],
// "think": true}}]. On standard output: [{"text": "..."} or {"error": "..."}].
//
// The names and types that a template sees, and the joining of neighbours of one role, follow
// ollama v0.33.0, template/template.go and api/types.go.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/template"
	"time"
)

type call struct {
	ID       string `json:"id"`
	Function struct {
		Index     int       `json:"index"`
		Name      string    `json:"name"`
		Arguments arguments `json:"arguments"`
	} `json:"function"`
}

type message struct {
	Role       string `json:"role"`
	Content    string `json:"content"`
	Thinking   string `json:"thinking"`
	ToolCalls  []call `json:"tool_calls"`
	ToolName   string `json:"tool_name"`
	ToolCallID string `json:"tool_call_id"`
}

type arguments map[string]any

func (a arguments) String() string { return marshal(map[string]any(a)) }

type kinds []string

func (k *kinds) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*k = kinds{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(k))
}

func (k kinds) MarshalJSON() ([]byte, error) {
	if len(k) == 1 {
		return json.Marshal(k[0])
	}
	return json.Marshal([]string(k))
}

func (k kinds) String() string {
	if len(k) == 1 {
		return k[0]
	}
	return fmt.Sprint([]string(k))
}

type property struct {
	AnyOf       []property `json:"anyOf,omitempty"`
	Type        kinds      `json:"type,omitempty"`
	Items       any        `json:"items,omitempty"`
	Description string     `json:"description,omitempty"`
	Enum        []any      `json:"enum,omitempty"`
	Required    []string   `json:"required,omitempty"`
}

type properties map[string]property

func (p properties) String() string { return marshal(map[string]property(p)) }

type tool struct {
	Type     string `json:"type"`
	Items    any    `json:"items,omitempty"`
	Function struct {
		Name        string `json:"name"`
		Description string `json:"description"`
		Parameters  struct {
			Type       string     `json:"type"`
			Defs       any        `json:"$defs,omitempty"`
			Items      any        `json:"items,omitempty"`
			Required   []string   `json:"required,omitempty"`
			Properties properties `json:"properties"`
		} `json:"parameters"`
	} `json:"function"`
}

func (t tool) String() string { return marshal(t) }

type tools []tool

func (t tools) String() string { return marshal([]tool(t)) }

type request struct {
	Messages []*message `json:"messages"`
	Tools    tools      `json:"tools"`
	Think    *bool      `json:"think"`
}

func marshal(value any) string {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// join returns the text of all system messages, and the messages with neighbours of one role as one.
func join(messages []*message) (string, []*message) {
	var system []string
	var joined []*message
	for _, m := range messages {
		if m.Role == "system" {
			system = append(system, m.Content)
		}
		last := len(joined) - 1
		if last >= 0 && joined[last].Role == m.Role && m.Role != "tool" {
			joined[last].Content += "\n\n" + m.Content
		} else {
			joined = append(joined, m)
		}
	}
	return strings.Join(system, "\n\n"), joined
}

func render(text string, r request) (string, error) {
	day := func(back int) func(...string) string {
		return func(...string) string { return time.Now().AddDate(0, 0, -back).Format("2006-01-02") }
	}
	parsed, err := template.New("").Option("missingkey=zero").Funcs(template.FuncMap{
		"json":             marshal,
		"currentDate":      day(0),
		"yesterdayDate":    day(1),
		"toTypeScriptType": func(any) string { return "any" },
	}).Parse(text)
	if err != nil {
		return "", err
	}
	system, messages := join(r.Messages)
	var out strings.Builder
	err = parsed.Execute(&out, map[string]any{
		"System":     system,
		"Messages":   messages,
		"Tools":      r.Tools,
		"Response":   "",
		"Think":      r.Think != nil && *r.Think,
		"ThinkLevel": "",
		"IsThinkSet": r.Think != nil,
	})
	return out.String(), err
}

func main() {
	var jobs []struct {
		Template string  `json:"template"`
		Request  request `json:"request"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	results := []map[string]string{}
	for _, job := range jobs {
		text, err := render(job.Template, job.Request)
		if err != nil {
			results = append(results, map[string]string{"error": err.Error()})
		} else {
			results = append(results, map[string]string{"text": text})
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(results); err != nil {
		panic(err)
	}
}
