// The C interface: nothing but plain structs and pointers crosses it, so no header of Python's or
// torch's is needed and a build takes seconds.
#include "draw.h"
#include "step.h"

namespace {

using namespace penstock;

template <typename Element>
AnyStepper* make(const PenstockModel& model) {
  switch (model.weight_type) {
    case 0: return new Stepper<FloatWeights, Element>(model);
    case 1: return new Stepper<BfloatWeights, Element>(model);
    case 2: return new Stepper<ByteWeights, Element>(model);
  }
  return nullptr;
}

}  // namespace

extern "C" {

// Consecutive weights of a column that stand together in a panel, by type of weights.
int32_t penstock_group(int32_t weight_type) {
  switch (weight_type) {
    case 1: return penstock::BfloatWeights::kGroup;
    case 2: return penstock::ByteWeights::kGroup;
  }
  return penstock::FloatWeights::kGroup;
}

const char* penstock_instructions() {
#if defined(__AVX512F__)
#define PENSTOCK_VECTORS "avx512"
#else
#define PENSTOCK_VECTORS "avx2"
#endif
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define PENSTOCK_VNNI " vnni"
#else
#define PENSTOCK_VNNI ""
#endif
  return PENSTOCK_VECTORS PENSTOCK_VNNI;
}

// A sum of the layout of both structs: a caller whose own differs must not call.
int64_t penstock_layout() { return sizeof(PenstockModel) * 1000 + sizeof(PenstockStep); }

void* penstock_create(const PenstockModel* model) {
  return model->kv_type == 0 ? make<float>(*model) : make<BF16>(*model);
}

void penstock_step(void* stepper, const PenstockStep* step) {
  static_cast<AnyStepper*>(stepper)->step(*step);
}

// A token for each row of logits: the best where the temperature is 0, else by its point in [0, 1).
void penstock_draw(const float* logits, int32_t rows, int64_t vocabulary, const float* temperatures,
                   const double* points, int32_t* out) {
  for (int32_t row = 0; row < rows; row++) {
    const float* mine = logits + row * vocabulary;
    out[row] = temperatures[row] > 0
                   ? penstock::draw_at(mine, vocabulary, temperatures[row], points[row])
                   : penstock::best_of(mine, vocabulary);
  }
}

// Forbids tokens in some rows of logits, by one bit a token and `words` words a row.
void penstock_forbid(float* logits, int64_t vocabulary, const int64_t* rows, int32_t count,
                     const uint32_t* allowed, int64_t words) {
  for (int32_t i = 0; i < count; i++)
    penstock::forbid(logits + rows[i] * vocabulary, vocabulary, allowed + i * words);
}

void penstock_destroy(void* stepper) { delete static_cast<AnyStepper*>(stepper); }
}
