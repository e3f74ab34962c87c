// What Google's Go client puts on the wire, over Google's own auth and API libraries as Debian packages them
// (golang-google-api-dev): `GO111MODULE=off GOPATH=/usr/share/gocode go run flow.go BASE KEYFILE DATASET ENDPOINT JOB`.
// Prints one JSON object per call: its name, the status and the body.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"golang.org/x/oauth2/google"
	cloudkms "google.golang.org/api/cloudkms/v1"
	cloudresourcemanager "google.golang.org/api/cloudresourcemanager/v3"
	iam "google.golang.org/api/iam/v1"
	"google.golang.org/api/iamcredentials/v1"
	"google.golang.org/api/option"
	"google.golang.org/api/storage/v1"
)

const scope = "https://www.googleapis.com/auth/cloud-platform"
const parent = "projects/demo/locations/us-central1"

func main() {
	base, keyFile, dataset, endpoint, job := os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]
	ctx := context.Background()
	key, err := os.ReadFile(keyFile)
	check(err)
	config, err := google.JWTConfigFromJSON(key, scope) // asks the key's token_uri
	check(err)
	client := config.Client(ctx)

	api := base + "/v1beta1/"
	ask := map[string]any{
		"contents":         []any{map[string]any{"parts": []any{map[string]any{"text": "q1"}}, "role": "user"}},
		"generationConfig": map[string]any{"temperature": 0.0, "maxOutputTokens": 5},
	}
	made := send(client, "create", "POST", api+parent+"/tuningJobs", map[string]any{
		"baseModel":             "gemini-2.5-flash",
		"tunedModelDisplayName": "from Go",
		"supervisedTuningSpec": map[string]any{
			"trainingDatasetUri": dataset, "hyperParameters": map[string]any{"epochCount": 1},
		},
	})
	var name struct{ Name string }
	check(json.Unmarshal(made, &name))
	send(client, "cancel", "POST", api+name.Name+":cancel", map[string]any{})
	send(client, "get", "GET", api+job, nil)
	send(client, "list", "GET", api+parent+"/tuningJobs?pageSize=1", nil)
	send(client, "generate", "POST", api+endpoint+":generateContent", ask)
	send(client, "stream", "POST", api+endpoint+":streamGenerateContent?alt=sse", ask)
	send(client, "refused", "POST", api+parent+"/tuningJobs", map[string]any{"baseModel": "no-such-model"})

	where := func(path string) []option.ClientOption {
		return []option.ClientOption{option.WithEndpoint(base + path), option.WithCredentialsFile(keyFile)}
	}
	projects, err := cloudresourcemanager.NewService(ctx, where("/")...)
	check(err)
	project, err := projects.Projects.Get("projects/demo").Do()
	report("project", err, project)
	accounts, err := iam.NewService(ctx, where("/")...)
	check(err)
	listed, err := accounts.Projects.ServiceAccounts.List("projects/demo").Do()
	report("accounts", err, listed)
	credentials, err := iamcredentials.NewService(ctx, where("/")...)
	check(err)
	short, err := credentials.Projects.ServiceAccounts.GenerateAccessToken(
		"projects/-/serviceAccounts/"+config.Email,
		&iamcredentials.GenerateAccessTokenRequest{Scope: []string{scope}, Lifetime: "120s"},
	).Do()
	report("token", err, short)
	keys, err := cloudkms.NewService(ctx, where("/")...)
	check(err)
	ring, err := keys.Projects.Locations.KeyRings.Create(parent, &cloudkms.KeyRing{}).KeyRingId("from-go").Do()
	report("ring", err, ring)
	crypto, err := keys.Projects.Locations.KeyRings.CryptoKeys.Create(
		ring.Name, &cloudkms.CryptoKey{Purpose: "ENCRYPT_DECRYPT"},
	).CryptoKeyId("k").Do()
	report("key", err, crypto)
	objects, err := storage.NewService(ctx, where("/storage/v1/")...)
	check(err)
	stored, err := objects.Objects.Insert("tuning-data", &storage.Object{Name: "from/go.txt"}).
		Media(strings.NewReader("written by Go")).Do()
	report("object", err, stored)
	read, err := objects.Objects.Get("tuning-data", "from/go.txt").Download()
	check(err)
	content, err := io.ReadAll(read.Body)
	report("content", err, string(content))
}

func send(client *http.Client, call, method, url string, body any) []byte {
	var content io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		check(err)
		content = bytes.NewReader(raw)
	}
	request, err := http.NewRequest(method, url, content)
	check(err)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "google-genai-sdk/1.36.0 gl-go/go1.19")
	request.Header.Set("X-Goog-Api-Client", "google-genai-sdk/1.36.0 gl-go/go1.19")
	answer, err := client.Do(request)
	check(err)
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	check(err)
	line(call, answer.StatusCode, string(raw))
	return raw
}

func report(call string, err error, answer any) {
	check(err)
	raw, err := json.Marshal(answer)
	check(err)
	line(call, 200, string(raw))
}

func line(call string, status int, body string) {
	raw, err := json.Marshal(map[string]any{"call": call, "status": status, "body": body})
	check(err)
	fmt.Println(string(raw))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
