// Our kernels against plain double arithmetic, without torch: what can be run where torch cannot, as under qemu-user.
// Exits with 1, and names the kernel, when a result is further off than its storage type explains.
#include <cstdio>
#include "../../src/sarto/engine/ops/kernels.cpp"
#include "../../src/sarto/engine/ops/lora_rows.cpp"

static int failures = 0;
static uint32_t state = 1;

static float drawn() {  // about uniform in (-2, 2)
    state = state * 1664525u + 1013904223u;
    return float(state >> 8) / float(1 << 22) - 2.f;
}

template <class T>
static std::vector<T> draw(index_t count) {
    std::vector<T> found(count);
    for (T& each : found) store(&each, drawn());
    return found;
}

template <class T>
static void compare(const char* name, const T* found, const std::vector<double>& expected) {
    double limit = sizeof(T) == 2 ? 8e-3 : 2e-5, worst = 0;
    for (size_t i = 0; i < expected.size(); i++) {
        double error = std::fabs(double(load(found + i)) - expected[i]) / (1.0 + std::fabs(expected[i]));
        worst = error > worst || std::isnan(error) ? error : worst;
    }
    bool passed = worst <= limit;
    std::printf("%-16s %-8s %.1e %s\n", name, sizeof(T) == 2 ? "bfloat16" : "float32", worst, passed ? "passed" : "FAILED");
    failures += !passed;
}

template <class T>
static void norm() {
    index_t rows = 5, width = 67;
    auto delta = draw<T>(rows * width);
    auto stream = draw<float>(rows * width), weight = draw<float>(width);
    std::vector<float> sum(rows * width), scale(rows);
    std::vector<T> kept(rows * width), out(rows * width);
    sarto_norm_forward(sizeof(T) == 2, rows, width, stream.data(), delta.data(), width, weight.data(), 1e-5f, sum.data(),
                       kept.data(), scale.data(), out.data(), width);
    std::vector<double> expected;
    for (index_t i = 0; i < rows; i++) {
        double squares = 0;
        auto at = [&](index_t j) { return double(stream[i * width + j]) + load(&delta[i * width + j]); };
        for (index_t j = 0; j < width; j++) squares += at(j) * at(j);
        for (index_t j = 0; j < width; j++) expected.push_back(at(j) / std::sqrt(squares / width + 1e-5) * weight[j]);
    }
    compare("norm_forward", out.data(), expected);
}

template <class T>
static void gated() {
    index_t rows = 3, width = 45;
    auto in = draw<T>(rows * 2 * width);
    std::vector<T> out(rows * width);
    std::vector<double> expected;
    sarto_gated_forward(sizeof(T) == 2, 0, rows, width, in.data(), 2 * width, out.data(), width);
    for (index_t i = 0; i < rows; i++)
        for (index_t j = 0; j < width; j++) {
            double gate = load(&in[i * 2 * width + j]), up = load(&in[i * 2 * width + width + j]);
            expected.push_back(gate / (1 + std::exp(-gate)) * up);
        }
    compare("gated_forward", out.data(), expected);
}

template <class T>
static void softmax() {
    index_t keys = 37;
    auto scores = draw<T>(keys * keys);
    std::vector<double> expected(keys * keys, 0.0);
    for (index_t i = 0; i < keys; i++) {
        double total = 0;
        for (index_t j = 0; j <= i; j++) total += std::exp(double(load(&scores[i * keys + j])));
        for (index_t j = 0; j <= i; j++) expected[i * keys + j] = std::exp(double(load(&scores[i * keys + j]))) / total;
    }
    sarto_softmax_forward(sizeof(T) == 2, keys, keys, keys, 0, 0, 0, scores.data());
    compare("softmax_forward", scores.data(), expected);
}

template <class T>
static void losses() {
    index_t rows = 4, width = 131, targets[] = {0, 5, 130, 77};
    auto logits = draw<T>(rows * width);
    std::vector<double> expected;
    std::vector<float> found(rows);
    std::vector<uint8_t> right(rows);
    for (index_t i = 0; i < rows; i++) {
        double total = 0;
        for (index_t j = 0; j < width; j++) total += std::exp(double(load(&logits[i * width + j])));
        expected.push_back(std::log(total) - load(&logits[i * width + targets[i]]));
    }
    sarto_loss(sizeof(T) == 2, rows, width, logits.data(), targets, found.data(), right.data(), 0);
    compare("loss", found.data(), expected);
}

template <class T>
static void lora() {
    index_t rows = 3, inputs = 29, rank = 4, blocks = 2, width = 33, total = 2 * rank;
    int32_t slots[] = {1, -1, 0};
    int64_t parts[] = {0, 1};
    auto x = draw<T>(rows * inputs), a = draw<T>(2 * inputs * total), b = draw<T>(2 * blocks * rank * width);
    std::vector<T> y(rows * blocks * width, T(0));
    std::vector<double> expected(y.size(), 0.0);
    for (index_t i = 0; i < rows; i++)
        for (index_t j = 0; slots[i] >= 0 && j < blocks * width; j++)
            for (index_t r = 0; r < rank; r++) {
                double factor = 0;
                for (index_t k = 0; k < inputs; k++)
                    factor += double(load(&x[i * inputs + k])) *
                              load(&a[(slots[i] * inputs + k) * total + parts[j / width] * rank + r]);
                expected[i * blocks * width + j] +=
                    factor * load(&b[(slots[i] * blocks * rank + j / width * rank + r) * width + j % width]);
            }
    sarto_lora_rows(sizeof(T) == 2, rows, inputs, total, rank, blocks, width, slots, parts, x.data(), inputs, a.data(),
                    b.data(), y.data(), blocks * width);
    compare("lora_rows", y.data(), expected);
}

template <class T>
static void all() {
    norm<T>();
    gated<T>();
    softmax<T>();
    losses<T>();
    lora<T>();
}

int main() {
    all<float>();
    all<bf16>();
    return failures ? 1 : 0;
}
