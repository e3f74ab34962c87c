// What Google's Java client puts on the wire, sent by the JDK's own client: `java Flow.java BASE TOKEN DATASET ENDPOINT JOB`.
// Prints one line per call: its name, the status, the content type and the body in base64, separated by tabs.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.Base64;

public class Flow {
    private static final String PARENT = "projects/demo/locations/us-central1";
    private static final HttpClient CLIENT = HttpClient.newHttpClient(); // offers HTTP/2 to a server of HTTP/1.1

    public static void main(String[] given) throws Exception {
        String base = given[0] + "/v1beta1/", token = given[1], dataset = given[2], endpoint = given[3], job = given[4];
        String spec = "{\"trainingDatasetUri\": \"%s\", \"hyperParameters\": {\"epochCount\": \"1\"}}".formatted(dataset);
        String ask = "{\"contents\": [{\"parts\": [{\"text\": \"q1\"}], \"role\": \"user\"}],"
            + " \"generationConfig\": {\"temperature\": 0.0, \"maxOutputTokens\": 5}}";
        String made = send("create", token, base + PARENT + "/tuningJobs",
            "{\"baseModel\": \"gemini-2.5-flash\", \"tunedModelDisplayName\": \"Grüße\", \"supervisedTuningSpec\": " + spec + "}");
        String name = made.replaceAll("(?s).*?\"name\":\"(projects/[0-9]+/locations/[^\"]*/tuningJobs/[0-9]+)\".*", "$1");
        send("cancel", token, base + name + ":cancel", "{}");
        send("get", token, base + job, null);
        send("list", token, base + PARENT + "/tuningJobs?pageSize=1", null);
        send("generate", token, base + endpoint + ":generateContent", ask);
        send("stream", token, base + endpoint + ":streamGenerateContent?alt=sse", ask);
        send("count", token, base + endpoint + ":countTokens", ask);
        send("refused", token, base + PARENT + "/tuningJobs", "{\"baseModel\": \"no-such-model\"}");
    }

    private static String send(String call, String token, String url, String body) throws Exception {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url))
            .header("Authorization", "Bearer " + token)
            .header("Content-Type", "application/json; charset=utf-8")
            .header("user-agent", "google-genai-sdk/1.28.0 gl-java/17")
            .header("x-goog-api-client", "google-genai-sdk/1.28.0 gl-java/17")
            .header("x-goog-user-project", "demo");
        request = body == null ? request.GET() : request.POST(BodyPublishers.ofString(body));
        var answer = CLIENT.send(request.build(), BodyHandlers.ofByteArray());
        String type = answer.headers().firstValue("content-type").orElse("");
        String packed = Base64.getEncoder().encodeToString(answer.body());
        System.out.println(String.join("\t", call, String.valueOf(answer.statusCode()), type, packed));
        return new String(answer.body(), "UTF-8");
    }
}
