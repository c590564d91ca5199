// The C interface: arguments, scratch memory, threads, and the choice of an instruction set.
#include <atomic>
#include <cstdlib>

#include "bounds.h"

#if defined(_OPENMP)
#include <omp.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(BITQUANT_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace bitquant {
namespace {

constexpr int64_t US_PER_THREAD = 10;  // waking a thread costs microseconds, so each must have more work than that

#if defined(BITQUANT_AMX)
// Whether the processor has the tile instructions and Linux lets this process use them, for which it has to be asked.
bool tiles_permitted() {
#if defined(BITQUANT_EMULATE_AMX)
    return true;
#else
    unsigned a, b, c, d = 0;
    constexpr unsigned tile_and_int8 = 3u << 24;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & tile_and_int8) != tile_and_int8) return false;
    constexpr int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#endif
}
#endif

const Kernels *supported(int index) {
    const Kernels *all[4];
    int count = 0;
#if defined(BITQUANT_X86)
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#if defined(BITQUANT_AMX)
    static const bool tiles = tiles_permitted();
    if (avx512 && tiles) all[count++] = &amx_kernels;
#endif
    if (avx512) all[count++] = &avx512_kernels;
    if (__builtin_cpu_supports("avx2")) all[count++] = &avx2_kernels;
#elif defined(BITQUANT_ARM)
    all[count++] = &neon_kernels;
#endif
    all[count++] = &portable_kernels;
    return index >= 0 && index < count ? all[index] : nullptr;
}

std::atomic<const Kernels *> active{nullptr};

const Kernels &kernels() {
    const Kernels *chosen = active.load(std::memory_order_relaxed);
    if (!chosen) active.store(chosen = supported(0), std::memory_order_relaxed);
    return *chosen;
}

struct Scratch {
    explicit Scratch(int64_t words) : data(static_cast<uint32_t *>(std::malloc(static_cast<size_t>(words) * 4))) {}
    ~Scratch() { std::free(data); }
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
    uint32_t *data;
};

// The worst status of several threads.
class Status {
  public:
    void report(bq_status s) {
        if (s != BQ_OK) value.store(s, std::memory_order_relaxed);
    }
    operator bq_status() const { return value.load(std::memory_order_relaxed); }

  private:
    std::atomic<bq_status> value{BQ_OK};
};

// How many threads a call is worth: of so many products, at so many a microsecond. Products in floating point: 64 bits
// do not hold those of the largest arrays.
int team_size(int threads, double products, int64_t per_microsecond) {
    const double useful = products / static_cast<double>(per_microsecond * US_PER_THREAD);
    return useful < 2 || threads < 2 ? 1 : static_cast<int>(useful < threads ? useful : threads);
}

// The threads of OpenMP do not survive a fork, and a team of them would be waited for without end.
std::atomic<bool> forked{false};
#if !defined(_WIN32)
const int watched = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
#endif

// work(part) for every part of `parts`, on one thread each; in a forked process all on this one.
template <class Work>
void in_parallel(int parts, const Work &work) {
#if defined(_OPENMP)
    if (parts > 1 && !forked.load(std::memory_order_relaxed)) {
#pragma omp parallel for num_threads(parts) schedule(static, 1)
        for (int part = 0; part < parts; ++part) work(part);
        return;
    }
#endif
    for (int part = 0; part < parts; ++part) work(part);
}

// Bounds of part `i` of `parts` over `n` items, in whole steps.
struct Range {
    Range(int64_t n, int64_t step, int64_t i, int64_t parts) {
        const int64_t steps = ceil_div(n, step);
        from = steps * i / parts * step;
        to = steps * (i + 1) / parts * step;
        if (to > n) to = n;
    }
    int64_t from, to, size() const { return to - from; }
};

Quantizer quantizer_of(const bq_linear &c) {
    return {c.offset, c.offset_size != 1, c.is_signed != 0, static_cast<int>(c.bits), c.step ? *c.step : 1};
}

bq_status multiply(const Linear &call, int64_t rows, int threads) {
    const Kernels &isa = kernels();
    const int64_t k = call.input.k;
    const int team = team_size(threads, static_cast<double>(rows) * k * (call.n * call.input.to.bits + 64), isa.macs_per_us);
    // Few rows: the threads share the columns instead, and each packs all rows, which is cheap for so few.
    const bool by_rows = rows >= 8 * team;
    const int64_t groups = ceil_div(call.n, LANES);
    Status status;
    in_parallel(team, [&](int part) {
        const Scratch scratch(isa.linear_scratch(k));
        if (!scratch.data) return status.report(BQ_NO_MEMORY);
        const Range row(rows, 4, by_rows ? part : 0, by_rows ? team : 1);
        const Range group(groups, 4, by_rows ? 0 : part, by_rows ? 1 : team);
        if (!isa.linear(call, row.from, row.size(), group.from, group.size(), scratch.data)) status.report(BQ_NAN);
    });
    return status;
}

// Whether q, k or v does, of an attention without queries or keys.
bool holds_nan(const float *x, int64_t rows, int64_t size, int64_t batch, int64_t head, int64_t row, const bq_attention &of) {
    for (int64_t b = 0; rows > 0 && b < of.batch; ++b)
        for (int64_t h = 0; h < of.heads; ++h)
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t i = 0; i < size; ++i) {
                    const float value = x[b * batch + h * head + r * row + i];
                    if (value != value) return true;
                }
    return false;
}

bq_status attend(const bq_attention &call, const Selection &by, int threads) {
    const int64_t heads = call.batch * call.heads;
    if (heads == 0) return BQ_OK;
    if (call.queries == 0 || call.keys == 0) {
        if (holds_nan(call.q, call.queries, call.d, call.q_batch, call.q_head, call.q_row, call) ||
            holds_nan(call.k, call.keys, call.d, call.k_batch, call.k_head, call.k_row, call) ||
            holds_nan(call.v, call.keys, call.dv, call.v_batch, call.v_head, call.v_row, call))
            return BQ_NAN;
        const float nothing = 0.0f * *call.scale;  // NaN where the scale is no finite number, as with keys
        for (int64_t i = 0; i < heads * call.queries * call.dv; ++i) call.out[i] = nothing;
        return BQ_OK;
    }
    const Kernels &isa = kernels();
    const double macs = static_cast<double>(heads) * call.queries * (call.keys + 64) * (call.d + call.dv + 64);
    const int team = team_size(threads, macs, isa.macs_per_us);
    // With few heads, several threads share one and each packs its keys again: cheap beside the scores.
    const int64_t blocks = heads >= team ? 1 : ceil_div(team, heads);
    Status status;
    in_parallel(team, [&](int part) {
        const Scratch scratch(attention_scratch(call));
        if (!scratch.data) return status.report(BQ_NO_MEMORY);
        const Range mine(heads * blocks, 1, part, team);
        for (int64_t item = mine.from; item < mine.to; ++item) {
            const int64_t head = item / blocks;
            const Range rows(call.queries, LANES, item % blocks, blocks);
            if (rows.size() <= 0) continue;
            if (!isa.attention(call, by, head / call.heads, head % call.heads, rows.from, rows.size(), scratch.data))
                status.report(BQ_NAN);
        }
    });
    return status;
}

}  // namespace

int64_t attention_scratch(const bq_attention &call) {
    constexpr int64_t block = 8;  // at least the QUERY_BLOCK of every instruction set
    const int64_t words = ceil_div(call.d, WORD_BITS), groups = ceil_div(call.keys, LANES);
    const int64_t key_words = ceil_div(call.keys, WORD_BITS), value_groups = ceil_div(call.dv, LANES);
    return groups * words * LANES + value_groups * key_words * LANES + block * groups * LANES + block * key_words +
           block * words + call.d + 1 + block * key_words + block * value_groups * LANES + 1 + groups + 4;
}

// The order of carving in convolution.inl.
int64_t convolution_scratch(const bq_convolution &call, const Tiles &part) {
    const Grid grid = grid_of(call);
    const int64_t channels = call.channels / call.groups, taps = call.kernel[0] * call.kernel[1];
    const int64_t planes = call.bits > 2 ? call.bits : 2, words = ceil_div(channels, WORD_BITS);
    const int64_t positions = end_position(grid, part) - first_position(grid, part) + 2 * LANES;
    return 2 * taps + grid.reach + 2 * LANES + positions * (1 + level_words(call)) + LANES * (call.bits * words + 1) +
           PASS_TILES * planes * ceil_div(taps * channels, WORD_BITS) * LANES;
}

}  // namespace bitquant

using namespace bitquant;

int bq_abi_version(void) { return BQ_ABI_VERSION; }

const char *bq_instruction_set_name(int index) {
    const Kernels *isa = supported(index);
    return isa ? isa->name : nullptr;
}

const char *bq_instruction_set(void) { return kernels().name; }

bq_status bq_use_instruction_set(const char *name) {
    for (int i = 0; const Kernels *isa = supported(i); ++i) {
        if (std::strcmp(isa->name, name) == 0) {
            active.store(isa);
            return BQ_OK;
        }
    }
    return BQ_UNSUPPORTED;
}

int64_t bq_limit(int64_t rounds, int threads) {
    const Kernels &isa = kernels();
    std::atomic<int64_t> done{0};
    in_parallel(threads, [&](int) { done += isa.limit(rounds); });
    return done;
}

bq_status bq_threshold_pack(const float *x, int64_t rows, int64_t k, int64_t stride, const float *threshold,
                            int64_t threshold_size, int strict, uint32_t *words, int32_t *ones, int threads) {
    if (!is_exact(k, 1) || !is_array(rows, k) || !is_strided(rows, stride) || !is_vector(threshold_size, k)) return BQ_GEOMETRY;
    const Kernels &isa = kernels();
    const Rows in{x, k, stride, {threshold, threshold_size != 1, !strict, 1, 1}};
    const int team = team_size(threads, static_cast<double>(rows) * k, 8000);
    Status status;
    in_parallel(team, [&](int part) {
        const Range mine(rows, 1, part, team);
        if (!isa.pack(in, mine.from, mine.size(), words + mine.from * ceil_div(k, WORD_BITS), ones + mine.from))
            status.report(BQ_NAN);
    });
    return status;
}

bq_status bq_multiply(const bq_linear *call, int threads) {
    if (!is_sound(*call)) return BQ_GEOMETRY;
    const Rows in{call->x, call->k, call->stride, quantizer_of(*call), call->x_words};
    const Next next{call->out_words, call->next_offset, call->next_offset_size != 1, call->next_is_signed != 0,
                    call->next_relu != 0};
    return multiply({in, call->lanes, call->n, call->scale, call->scale_size != 1, call->bias, call->out, next}, call->rows,
                    threads);
}

bq_status bq_convolve(const bq_convolution *call, int threads) {
    if (!is_sound(*call)) return BQ_GEOMETRY;
    if (call->batch == 0) return BQ_OK;
    const Kernels &isa = kernels();
    const Grid grid = grid_of(*call);
    const int64_t inputs = call->batch * call->channels * call->height * call->width;
    const int64_t k = call->kernel[0] * call->kernel[1] * (call->channels / call->groups);
    const double outputs = static_cast<double>(call->batch) * call->out_channels * grid.tiles * LANES;
    const int team = team_size(threads, outputs * (k * call->bits + 64) + 64.0 * inputs, isa.macs_per_us);
    // A block packs the positions it reads: large enough to share few of them with the next, small enough for a cache.
    const int64_t shared = 2 * ceil_div(grid.span, LANES * grid.column_step);
    const int64_t wanted = ceil_div(grid.tiles, shared > 32 ? shared : 32), needed = ceil_div(team, call->batch);
    const int64_t blocks = wanted > needed ? wanted : needed;
    Status status;
    in_parallel(team, [&](int part) {
        const Range mine(call->batch * blocks, 1, part, team);
        const auto tiles = [&](int64_t item) -> Tiles {
            const Range block(grid.tiles, 1, item % blocks, blocks);
            return {item / blocks, block.from, block.to};
        };
        int64_t words = 0;
        for (int64_t item = mine.from; item < mine.to; ++item) {
            const Tiles block = tiles(item);
            const int64_t more = block.from < block.to ? convolution_scratch(*call, block) : 0;
            if (more > words) words = more;
        }
        if (words == 0) return;  // more threads than blocks
        const Scratch scratch(words);
        if (!scratch.data) return status.report(BQ_NO_MEMORY);
        for (int64_t item = mine.from; item < mine.to; ++item) {
            const Tiles block = tiles(item);
            if (block.from < block.to && !isa.convolution(*call, block, scratch.data)) status.report(BQ_NAN);
        }
    });
    return status;
}

bq_status bq_attention_rowmax(const bq_attention *call, const int64_t *margin, int threads) {
    return is_sound(*call) ? attend(*call, {nullptr, *margin, 0}, threads) : BQ_GEOMETRY;
}

bq_status bq_attention_table(const bq_attention *call, const int64_t *table, const int64_t *ratio, int threads) {
    if (!is_sound(*call)) return BQ_GEOMETRY;
    if (*ratio < 0) return BQ_TABLE;
    for (int64_t i = 0; i <= call->d; ++i)
        if (table[i] < 0 || table[i] > TABLE_MAX) return BQ_TABLE;
    return attend(*call, {table, 0, *ratio}, threads);
}

bq_status bq_embedding(const int64_t *indices, int64_t count, const uint8_t *packed, int64_t rows, int64_t bits,
                       int64_t dim, const float *scale, int64_t scale_size, float *out, int threads) {
    if (!is_size(dim) || !is_size(rows, 0) || !is_width(bits) || !is_vector(scale_size, rows)) return BQ_GEOMETRY;
    const int64_t bytes = ceil_div(dim, 8);
    if (!is_array(count, dim) || !is_array(rows, bits, bytes)) return BQ_GEOMETRY;
    const Kernels &isa = kernels();
    const int team = team_size(threads, static_cast<double>(count) * dim * bits, 8000);
    Status status;
    in_parallel(team, [&](int part) {
        const Range mine(count, 1, part, team);
        for (int64_t i = mine.from; i < mine.to; ++i) {
            const int64_t row = indices[i];
            if (row < 0 || row >= rows) return status.report(BQ_INDEX);
            const float factor = scale[scale_size == 1 ? 0 : row];
            isa.embedding(packed + row * bytes, rows * bytes, bits, dim, factor, out + i * dim);
        }
    });
    return status;
}

bq_status bq_elastic_levels(const bq_elastic *call, int threads) {
    if (!is_sound(*call)) return BQ_GEOMETRY;
    const Kernels &isa = kernels();
    const int team = team_size(threads, static_cast<double>(call->rows) * call->k, 2000);
    Status status;
    in_parallel(team, [&](int part) {
        const Range mine(call->rows, 1, part, team);
        if (!isa.elastic_levels(*call, mine.from, mine.size())) status.report(BQ_NAN);
    });
    return status;
}

bq_status bq_elastic_gradient(const bq_elastic *call, const float *grad, float *for_x, float *for_shift, float *for_alpha,
                              int64_t blocks, int threads) {
    if (!is_sound(*call) || blocks < 1 || !is_array(blocks, call->k)) return BQ_GEOMETRY;
    const Kernels &isa = kernels();
    const int64_t k = call->k, size = ceil_div(call->rows, blocks);
    std::memset(for_shift, 0, static_cast<size_t>(blocks * k) * sizeof(float));
    std::memset(for_alpha, 0, static_cast<size_t>(blocks * k) * sizeof(float));
    if (call->rows == 0) return BQ_OK;
    const int team = team_size(threads, static_cast<double>(call->rows) * k, 1000);
    in_parallel(team, [&](int part) {
        const Range mine(blocks, 1, part, team);
        for (int64_t b = mine.from; b < mine.to; ++b) {
            const Range rows(call->rows, size, b, blocks);
            isa.elastic_gradient(*call, grad, for_x, rows.from, rows.size(), for_shift + b * k, for_alpha + b * k);
        }
    });
    return BQ_OK;
}
