"""The search page: one document, no external request."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Visual search</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --line: #8886; --ink: light-dark(#222, #eee); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1rem;
  color: var(--ink); }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; }
h2 { font-size: 1rem; margin: 1rem 0 .3rem; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.strip { display: flex; flex-wrap: wrap; gap: .3rem; }
.strip button { padding: 2px; border: 1px solid var(--line); background: none; cursor: pointer; }
.strip button:focus-visible, canvas:focus-visible { outline: 3px solid #0072b2; }
img { display: block; image-rendering: pixelated; background: #fff; }
canvas { border: 1px solid var(--line); background: #fff; touch-action: none; }
#results { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: .7rem;
  padding: 0; list-style: none; }
#results img { width: 100%; }
#results small { display: block; overflow-wrap: anywhere; }
table { border-collapse: collapse; }
td, th { padding: .1rem .6rem .1rem 0; text-align: left; font-weight: normal; }
td:last-child { text-align: right; font-variant-numeric: tabular-nums; }
#message { min-height: 1.5em; }
.warn { color: #d55e00; font-weight: 600; }
</style>
</head>
<body>
<h1>Visual search</h1>
<p>Pick a photograph, choose a file, or draw. The box is what the network looked at; nobody ever
showed it one.</p>
<div class="strip" id="examples" aria-label="Example photographs"></div>
<div class="row">
<section>
<h2>Query</h2>
<canvas id="query" width="256" height="256" tabindex="0"
 aria-label="The query; draw here with the pointer"></canvas>
<p>
<label>Colour <input id="colour" type="color" value="#d55e00"></label>
<label>Brush <input id="brush" type="range" min="4" max="60" value="24"></label>
</p>
<p><button id="clear">Clear</button> <button id="go">Search the drawing</button></p>
<p><label>File <input id="file" type="file" accept="image/png,image/jpeg,image/webp"></label></p>
<p><label>Search in <select id="category"><option value="">all categories</option>
<option value="-1">the likeliest category</option></select></label></p>
</section>
<section style="flex:1 1 20rem">
<p id="message" role="status"></p>
<div class="row"><table id="categories"></table><table id="times"></table></div>
<h2>Results</h2>
<ol id="results"></ol>
</section>
</div>
<script>
const $ = id => document.getElementById(id)
const canvas = $('query'), pen = canvas.getContext('2d')
let latest = 0, blob = null
function blank() { pen.fillStyle = '#fff'; pen.fillRect(0, 0, 256, 256); blob = null }
function cell(row, text) { const td = row.insertCell(); td.textContent = text }
function table(element, pairs) {
  element.replaceChildren()
  for (const [name, value] of pairs) {
    const row = element.insertRow(); cell(row, name); cell(row, value) }
}
async function show(picture) {
  const image = await createImageBitmap(picture)
  pen.imageSmoothingEnabled = false
  pen.drawImage(image, 0, 0, 256, 256)
}
function frame(box) {
  const [x0, y0, x1, y1] = box.map(v => 256 * v)
  pen.lineWidth = 3; pen.strokeStyle = '#000'
  pen.strokeRect(x0 - 1.5, y0 - 1.5, x1 - x0 + 3, y1 - y0 + 3)
  pen.strokeStyle = '#f0e442'; pen.strokeRect(x0, y0, x1 - x0, y1 - y0)
}
async function search(picture) {
  const turn = ++latest, begin = performance.now()
  blob = picture
  $('message').textContent = 'Searching'
  const category = $('category').value
  const where = '/search?k=12' + (category === '' ? '' : '&category=' + category)
  let answer
  try {
    const reply = await fetch(where, {method: 'POST', body: picture})
    answer = await reply.json()
    if (!reply.ok) throw new Error(answer.detail.msg || JSON.stringify(answer.detail))
  } catch (error) {
    if (turn === latest) $('message').textContent = 'No result: ' + error.message
    return
  }
  if (turn !== latest) return
  await show(picture); frame(answer.box)
  const where2 = answer.searched ? 'in ' + answer.searched : 'in all categories'
  const seconds = (performance.now() - begin).toFixed(0)
  $('message').textContent = answer.hits.length + ' results ' + where2 + ', ' + seconds + ' ms'
  $('message').classList.toggle('warn', answer.partial)
  if (answer.partial) $('message').textContent += '. A shard did not answer: results are partial'
  table($('categories'), answer.categories.map(([n, p]) => [n, (100 * p).toFixed(0) + ' %']))
  table($('times'), Object.entries(answer.milliseconds).map(([n, t]) => [n, t.toFixed(1) + ' ms']))
  $('results').replaceChildren(...answer.hits.map(hit => {
    const item = document.createElement('li'), image = new Image()
    image.src = '/items/' + hit.id; image.alt = hit.label
    const text = document.createElement('small')
    text.textContent = hit.label + ' (' + hit.category + ') ' + hit.score.toFixed(3)
    item.append(image, text); return item
  }))
}
function drawing() { canvas.toBlob(search, 'image/png') }
let down = false
canvas.addEventListener('pointerdown', e => {
  if (blob) blank(); down = true; canvas.setPointerCapture(e.pointerId); stroke(e) })
canvas.addEventListener('pointermove', e => { if (down) stroke(e) })
canvas.addEventListener('pointerup', () => { down = false })
function stroke(e) {
  const r = canvas.getBoundingClientRect()
  pen.fillStyle = $('colour').value; pen.beginPath()
  const x = (e.clientX - r.left) * 256 / r.width, y = (e.clientY - r.top) * 256 / r.height
  pen.arc(x, y, $('brush').value / 2, 0, 7)
  pen.fill()
}
$('clear').onclick = () => { latest++; blank() }
$('go').onclick = drawing
$('category').onchange = () => { if (blob) search(blob) }
$('file').onchange = () => { if ($('file').files[0]) search($('file').files[0]) }
blank()
fetch('/health').then(r => r.json()).then(about => {
  about.categories.forEach((name, i) => $('category').add(new Option(name, i)))
  for (let n = 0; n < about.examples; n++) {
    const button = document.createElement('button'), image = new Image(48, 48)
    image.src = '/examples/' + n; image.alt = 'Example ' + (n + 1)
    button.append(image)
    button.onclick = async () => search(await (await fetch(image.src)).blob())
    $('examples').append(button)
  }
  if (about.examples) $('examples').firstChild.click()
})
</script>
</body>
</html>
"""
